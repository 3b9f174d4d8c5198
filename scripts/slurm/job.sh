# What all jobs begin with; read by them from the project's folder, where `submit` starts them.
# They set `run`, the run folder.
#
# FOVEA_SETUP holds shell commands of the site, such as "module load cuda". Slurm's own variables
# are read in these scripts alone: the packages know parts (I/N) and torchrun's environment.
set +u # what sites and conda have their shells read does not expect it
eval "${FOVEA_SETUP:-}"
set -u
PY=$PWD/.venv/bin/python
[ -x "$PY" ] || { echo "$PWD: no environment in it; make one with: make env" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
RESTARTS=5 # after a kill, of each task: what kills it again and again needs a person

# again CODE: end with an exit code; run once more what was killed (such as for lack of memory), gave
# up waiting (124, train.patience) or has stopped with a checkpoint (75). All that is finished is
# kept. Kills are counted in RUN/logs, for Slurm's own count is also of time limits and pre-emptions,
# of which a long training has many.
again() {
  local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  local kills=$run/logs/killed-$job
  local killed=
  [ "$1" -gt 128 ] || [ "$1" = 124 ] && killed=1
  if [ "$killed" ]; then
    mkdir -p "$run/logs"
    echo "exit code $1" >> "$kills"
  fi
  if [ "$1" = 75 ] || { [ "$killed" ] && [ "$(wc -l < "$kills")" -le $RESTARTS ]; }; then
    echo "exit code $1: this job is queued once more, and goes on where it was"
    scontrol requeue "$job"
  fi
  exit "$1"
}
