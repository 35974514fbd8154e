# shellcheck shell=bash
# What all scripts of slurm/ begin with; they source it. Goes to the folder that the job was submitted from, reads the
# site (slurm/site.env, or what HEADSPARK_SITE names), loads its modules, and says how a program is started: `launch`
# holds the words that come before it, those of the container, if there is one.
fail() {
  echo "error: $*" >&2
  exit 2
}
note() { echo "note: $*" >&2; }

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
if [ -n "${HEADSPARK_SITE:-}" ]; then
  [ -r "$HEADSPARK_SITE" ] || fail "HEADSPARK_SITE=$HEADSPARK_SITE: no such file in $PWD"
elif [ -r slurm/site.env ]; then
  HEADSPARK_SITE=slurm/site.env
fi
if [ -n "${HEADSPARK_SITE:-}" ]; then
  # shellcheck source=slurm/sites/generic.env
  . "$HEADSPARK_SITE"
fi
if [ -n "${HEADSPARK_MODULES:-}" ]; then
  command -v module >/dev/null || fail "HEADSPARK_MODULES=$HEADSPARK_MODULES: this node has no command 'module'"
  strict=$-
  set +u # module files read variables that nobody has set
  # shellcheck disable=SC2086  # several words
  module load $HEADSPARK_MODULES || fail "HEADSPARK_MODULES: 'module load $HEADSPARK_MODULES' failed on ${SLURMD_NODENAME:-this node}"
  case $strict in *u*) set -u ;; esac
fi
launch=()
if [ -n "${HEADSPARK_CONTAINER:-}" ]; then
  [ -e "$HEADSPARK_CONTAINER" ] || fail "HEADSPARK_CONTAINER=$HEADSPARK_CONTAINER: no such file"
  command -v apptainer >/dev/null || fail "HEADSPARK_CONTAINER: no apptainer on ${SLURMD_NODENAME:-this node}; load its module by HEADSPARK_MODULES"
  scratch=${HEADSPARK_SCRATCH:-}
  [ -d "$scratch" ] || scratch= # a folder of the first node's alone cannot be bound
  launch=(apptainer exec --bind "$PWD,${HEADSPARK_BIND:-$PWD}${scratch:+,$scratch}")
  [ -z "${SLURM_GPUS_ON_NODE:-}" ] || launch+=(--nv)
  launch+=("$HEADSPARK_CONTAINER")
  export PYTHONSAFEPATH=1 # the image's code alone, without what Python would find in the checkout
else
  PATH=$PWD/.venv/bin:$PATH
  command -v harmonize >/dev/null ||
    fail "$PWD: no .venv there, and no other environment with headspark is active; run 'make lint' in the checkout, which makes one, and submit from there"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# The part of an array's work that this task does, as I/N; 0/1 without an array.
whole_array() {
  if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo 0/1
    return
  fi
  # shellcheck disable=SC2153  # SLURM sets it
  local first=$SLURM_ARRAY_TASK_MIN count=$SLURM_ARRAY_TASK_COUNT
  [ $((SLURM_ARRAY_TASK_MAX - first + 1)) = "$count" ] ||
    fail "give the whole array again, not some of its tasks: what is done stays as it is"
  echo $((SLURM_ARRAY_TASK_ID - first))/"$count"
}

# The value of an option among words, wherever it stands: option --corpus "$@"
option() {
  local name=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
    "$name") echo "${2:-}" && return ;;
    "$name"=*) echo "${1#*=}" && return ;;
    esac
    shift
  done
}
