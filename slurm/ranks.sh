#!/usr/bin/env bash
# The ranks of a training job, started by srun, on one node or several; a script of slurm/ executes this.
#
#   bash slurm/ranks.sh PYTHON_ARGUMENTS        e.g. ssl/pretrain.py --config ...   or   -m finetune.train --config ...
#
# One rank a GPU; without GPUs one a node, or RANKS_PER_NODE. Told to stop by USR1 or TERM (the time limit, a job that
# needs the place), or when a rank has saved and ended by itself (exit status 75), the job is requeued. With STAGE=1 the
# folder of --corpus is copied to each node's HEADSPARK_SCRATCH first, and removed again.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) || exit 2
# shellcheck source=slurm/job.sh
. "$here/job.sh"
saved=75 # exit status of a run that was told to stop and wrote its checkpoint (EX_TEMPFAIL)
feeding=8 # cores a GPU: the step, its loader (data.workers), and what the system wants

: "${SLURM_JOB_NODELIST:?runs inside a job: sbatch slurm/pretrain.sbatch ...}"
nodes=${SLURM_JOB_NUM_NODES:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
export LOCAL_WORLD_SIZE=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
export WORLD_SIZE=$((LOCAL_WORLD_SIZE * nodes))
cpus=$((${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} / LOCAL_WORLD_SIZE))
if [ "$gpus" = 0 ]; then
  note "no GPU was asked for, so that the ranks compute on CPUs; sbatch --gres=gpu:N gives N to each node"
elif [ "$LOCAL_WORLD_SIZE" -gt "$gpus" ]; then
  fail "RANKS_PER_NODE=$LOCAL_WORLD_SIZE: the job has $gpus GPUs on a node, and each rank needs its own; sbatch --gres=gpu:$LOCAL_WORLD_SIZE"
elif [ "$LOCAL_WORLD_SIZE" -lt "$gpus" ]; then
  note "RANKS_PER_NODE=$LOCAL_WORLD_SIZE: of $gpus GPUs on a node the others stay idle"
elif [ "$cpus" -lt "$feeding" ]; then
  note "$cpus cores a GPU may not feed it; sbatch --cpus-per-task=$((feeding * LOCAL_WORLD_SIZE)) gives each $feeding"
fi
[ "$cpus" -gt 0 ] || cpus=1

# Where the ranks meet: the first node, by its name or else by the address by which SLURM itself reaches it.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$first
if ! getent hosts "$first" >/dev/null; then
  MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  if [ -z "$MASTER_ADDR" ] || ! getent hosts "$MASTER_ADDR" >/dev/null; then
    [ "$nodes" = 1 ] || fail "$first: the first node's name has no address here, and the other nodes' ranks need one"
    MASTER_ADDR=127.0.0.1
  fi
fi
# A port that is free on this node, which is the first: the one that is given, or one below those that the system gives
# away by itself.
MASTER_PORT=$("${launch[@]}" python "$here/meet.py" port "${MASTER_PORT:-}") || exit 2
export MASTER_ADDR MASTER_PORT

step='' stopping=0 staged=''
# shellcheck disable=SC2317  # called by the trap
stop() {
  stopping=1
  echo "told to stop (restart ${SLURM_RESTART_COUNT:-0}): saving a checkpoint"
  [ -z "$step" ] || kill -USR1 "$step"
}
trap stop USR1 TERM

# srun hands a signal on to all of its tasks, and their exit status back; meanwhile this shell listens to signals.
run_step() {
  local status
  srun --cpu-bind=none "$@" &
  step=$!
  [ "$stopping" = 0 ] || kill -USR1 "$step" # told before there was a step to tell
  while true; do
    wait "$step"
    status=$?
    kill -0 "$step" 2>/dev/null || break
  done
  step=
  return "$status"
}

# Ends the job, or hands it back to the queue. The copy of the corpus goes first: a requeued job is ended by SLURM.
finish() {
  [ -z "$staged" ] || srun "${a_task_a_node[@]}" bash "$here/stage.sh" remove "$staged" "$corpus"
  if [ "$1" != 0 ] && { [ "$stopping" = 1 ] || [ "$1" = "$saved" ]; }; then
    echo "stopped with status $1; requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    echo "error: SLURM did not requeue job $SLURM_JOB_ID; submit the same command again, it goes on from here" >&2
    exit "$saved"
  fi
  if [ "$1" = 137 ]; then
    echo "error: a rank was killed (signal 9), most often for its memory: ask for more by sbatch --mem=..." >&2
  fi
  exit "$1"
}

a_task_a_node=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task=1)
if [ "${STAGE:-0}" != 0 ]; then
  corpus=$(option --corpus "$@")
  [ -n "$corpus" ] || fail "STAGE=$STAGE: the command names no --corpus to be copied"
  [ -n "${HEADSPARK_SCRATCH:-}" ] || fail "STAGE=$STAGE: slurm/site.env names no HEADSPARK_SCRATCH"
  staged=$HEADSPARK_SCRATCH/headspark-$UID-$SLURM_JOB_ID
  run_step "${a_task_a_node[@]}" --kill-on-bad-exit bash "$here/stage.sh" copy "$corpus" "$staged" || finish $?
  words=()
  while [ $# -gt 0 ]; do
    case $1 in
    --corpus) words+=(--corpus "$staged/corpus") && shift ;;
    --corpus=*) words+=("--corpus=$staged/corpus") ;;
    *) words+=("$1") ;;
    esac
    shift
  done
  set -- "${words[@]}"
fi
if [ "$nodes" != 1 ]; then
  run_step "${a_task_a_node[@]}" --kill-on-bad-exit "${launch[@]}" python "$here/meet.py" meet || finish $?
fi
[ "$stopping" = 0 ] || finish "$saved"

# Once one rank has ended, the others have ten minutes to end too: the first scores all, and draws the report. Ranks that
# know nothing of each other (slurm/predict.sbatch) have no limit.
# shellcheck disable=SC2016  # a rank knows its own number
run_step --ntasks="$WORLD_SIZE" --ntasks-per-node="$LOCAL_WORLD_SIZE" --cpus-per-task="$cpus" \
  --wait="${RANKS_WAIT_S:-600}" bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - "${launch[@]}" python "$@"
finish $?
