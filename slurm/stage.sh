#!/usr/bin/env bash
# On one node: copy a corpus to its own disk, or remove the copy; slurm/ranks.sh has it run on each node of a job.
#
#   bash slurm/stage.sh copy CORPUS FOLDER      into FOLDER/corpus, which only this user may read
#   bash slurm/stage.sh remove FOLDER CORPUS    the folds that a run dealt there belong to CORPUS, and go back
set -euo pipefail
node=${SLURMD_NODENAME:-$(hostname)}
case $1 in
remove)
  dealt=$2/corpus/folds.parquet kept=$3/folds.parquet
  if [ "${SLURM_NODEID:-0}" = 0 ] && [ -f "$dealt" ] && [ ! -e "$kept" ]; then
    { cp -- "$dealt" "$kept.$SLURM_JOB_ID" && mv -n -- "$kept.$SLURM_JOB_ID" "$kept"; } || [ -e "$kept" ] ||
      echo "note: $kept: cannot be written; the next run deals the patients again" >&2
    rm -f -- "$kept.$SLURM_JOB_ID"
  fi
  rm -rf -- "$2"
  ;;
copy)
  corpus=$2 folder=$3 scratch=${3%/*}
  # What killed jobs have left behind; where SLURM is too busy to say which jobs there are, any may still run.
  if jobs=$(squeue --noheader --user="$UID" --format=%A 2>/dev/null); then
    for old in "$scratch/headspark-$UID"-*; do
      [ ! -d "$old" ] || grep -qx -- "${old##*-}" <<<"$jobs" || rm -rf -- "$old" || true
    done
  fi
  rm -rf -- "$folder"
  needed=$(du -skL -- "$corpus" | cut -f 1)
  free=$(df -Pk -- "$scratch" | awk 'END { print $4 }')
  if [ "$needed" -ge "$free" ]; then
    echo "error: $node: $scratch has $((free >> 20)) GiB free, $corpus has $(((needed >> 20) + 1)): submit without STAGE" >&2
    exit 2
  fi
  (umask 077 && mkdir -p -- "$folder" && cp -RL -- "$corpus" "$folder/corpus")
  echo "$node: $corpus copied to $folder/corpus ($((needed >> 10)) MiB)"
  ;;
esac
