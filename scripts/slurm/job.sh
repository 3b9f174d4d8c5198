# What all jobs begin with; read by them from the project's folder, where `submit` starts them.
#
# FOVEA_SETUP holds shell commands of the site, such as "module load cuda". Slurm's own variables
# are read in these scripts alone: the packages know parts (I/N) and torchrun's environment.
eval "${FOVEA_SETUP:-}"
PY=$PWD/.venv/bin/python
[ -x "$PY" ] || { echo "$PWD: no environment in it; make one with: make env" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
RESTARTS=5 # of a job that was killed: what kills it again and again needs a person

# again CODE: end with an exit code; run once more what was killed (such as for lack of memory) or
# says itself that it may succeed next time (75). All that is finished is kept.
again() {
  if [[ $1 = 75 || $1 -gt 128 ]] && [ "${SLURM_RESTART_COUNT:-0}" -lt $RESTARTS ]; then
    echo "exit code $1: this job is queued once more, and goes on where it was"
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
  fi
  exit "$1"
}
