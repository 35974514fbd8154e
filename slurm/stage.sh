#!/usr/bin/env bash
# On one node: copy a corpus to its own disk, or remove the copy; slurm/ranks.sh has it run on each node of a job.
#
#   bash slurm/stage.sh copy CORPUS FOLDER      into FOLDER/corpus, which only this user may read
#   bash slurm/stage.sh remove FOLDER
set -euo pipefail
node=${SLURMD_NODENAME:-$(hostname)}
case $1 in
remove) rm -rf -- "$2" ;;
copy)
  corpus=$2 folder=$3 scratch=${3%/*}
  for old in "$scratch/headspark-$UID"-*; do # what a killed job has left behind
    [ ! -d "$old" ] || [ -n "$(squeue --noheader --jobs "${old##*-}" 2>/dev/null)" ] || rm -rf -- "$old"
  done
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
