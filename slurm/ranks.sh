# The ranks of a training job, started by srun, on one node or several; a script of slurm/ executes this.
#
#   bash slurm/ranks.sh PYTHON_ARGUMENTS        e.g. ssl/pretrain.py --config ...   or   -m finetune.train --config ...
#
# Told to stop by USR1 or TERM, or when a rank has saved and ended by itself (exit status 75), the job is requeued.
set -uo pipefail
PATH=$PWD/.venv/bin:$PATH
saved=75 # exit status of a run that was told to stop and wrote its checkpoint (EX_TEMPFAIL)
export LOCAL_WORLD_SIZE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export WORLD_SIZE=$((LOCAL_WORLD_SIZE * ${SLURM_JOB_NUM_NODES:-1}))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  if [ "${SLURM_JOB_NUM_NODES:-1}" != 1 ]; then
    echo "error: $MASTER_ADDR: the first node's name has no address here, and the other nodes' ranks need one" >&2
    exit 1
  fi
  MASTER_ADDR=127.0.0.1
fi
# A random port that is free on this node, which is the first, and below those that the system gives away by itself.
MASTER_PORT=$(python -c '
import random, socket
while True:
    port = random.randrange(20000, 32768)
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            continue
    print(port)
    break
') || exit 1
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cpus=$((${SLURM_CPUS_PER_TASK:-1} / LOCAL_WORLD_SIZE))

# srun starts the ranks itself: it hands a signal on to all of them, and their exit status back. Once one rank has
# ended, the others have a minute to end too.
srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$LOCAL_WORLD_SIZE" --cpus-per-task=$((cpus > 0 ? cpus : 1)) --wait=60 \
  --cpu-bind=none bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python "$@"' - "$@" &
step=$!
stopping=0
stop() {
  stopping=1
  echo "told to stop (restart ${SLURM_RESTART_COUNT:-0}): saving a checkpoint"
  kill -USR1 "$step"
}
trap stop USR1 TERM
while true; do
  wait "$step"
  status=$?
  kill -0 "$step" 2>/dev/null || break
done
if [ "$status" != 0 ] && { [ "$stopping" = 1 ] || [ "$status" = "$saved" ]; }; then
  echo "stopped with status $status; requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
