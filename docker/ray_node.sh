#!/usr/bin/env bash
# Starts the Ray node of a group in the foreground, for containers, systemd, SLURM and by hand:
#
#     docker/ray_node.sh head
#     POWEROPD_HEAD=HOST:6379 docker/ray_node.sh rollout [more options of `ray start`, which win over those here]
#
# Groups: head, rollout, teacher, learner. A node has a resource named after its group, of which one worker takes 1.
# It ends when one of Ray's processes does: whatever started it starts it again. SIGTERM takes the node out of the
# cluster. Exit code 2: something is wrong with what was given; 1: the head was not reached, or Ray ended.
#
#     POWEROPD_HEAD            HOST:PORT of the head; the head listens on this port (6379)
#     POWEROPD_WORKERS         so many workers the node may hold (8)
#     POWEROPD_NODE_NAME       how the node is called in logs and in `status` (the host's name)
#     POWEROPD_METRICS_PORT    Prometheus reads the node's metrics here (8080)
#     POWEROPD_HEAD_TIMEOUT    so many seconds the head is waited for (300)
#     POWEROPD_DASHBOARD_HOST  the head's dashboard and jobs API listen here (127.0.0.1)
#     POWEROPD_GCS_STORAGE     folder in which the head keeps its state, so that a run survives its restart (none)
#     RAY_AUTH_MODE            token or disabled (token)
#     RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH   the token, or its file (~/.ray/auth_token): the same on every node
set -euo pipefail

readonly ROLES="head rollout teacher learner"
readonly PROBE_TIMEOUT_S=5 CALL_TIMEOUT_S=60 PAUSE_S=2 REPORT_EVERY_S=15

say() { echo "ray_node: $*" >&2; }
refuse() { say "$*"; exit 2; }
is_number() { [[ $1 =~ ^[1-9][0-9]{0,8}$ ]]; }
check_number() { is_number "${!1}" || refuse "$1 must be a whole number above 0, got '${!1}'"; }

read_settings() {
	: "${POWEROPD_WORKERS:=8}" "${POWEROPD_METRICS_PORT:=8080}" "${POWEROPD_HEAD_TIMEOUT:=300}"
	: "${POWEROPD_DASHBOARD_HOST:=127.0.0.1}" "${POWEROPD_NODE_NAME:=$(uname -n)}" "${RAY_AUTH_MODE:=token}"
	check_number POWEROPD_WORKERS
	check_number POWEROPD_METRICS_PORT
	check_number POWEROPD_HEAD_TIMEOUT
	if [[ $role != head && -z ${POWEROPD_HEAD:-} ]]; then
		refuse "POWEROPD_HEAD must be HOST:PORT of the head for a $role node, got nothing"
	fi
	POWEROPD_HEAD=${POWEROPD_HEAD:-$POWEROPD_NODE_NAME:6379}
	head_host=${POWEROPD_HEAD%:*} head_port=${POWEROPD_HEAD##*:}
	if [[ -z $head_host || $POWEROPD_HEAD != *:* ]] || ! is_number "$head_port"; then
		refuse "POWEROPD_HEAD must be HOST:PORT, got '$POWEROPD_HEAD' (nearest valid: '${head_host:-HOST}:6379')"
	fi
	command -v ray >/dev/null || refuse "no 'ray' on the PATH: put the bin folder of poweropd's environment there"
}

# As the commands of launch.py do: a token that others can read is closed to them.
check_token() {
	case $RAY_AUTH_MODE in
	token) ;;
	disabled)
		say "warning: RAY_AUTH_MODE is disabled: whoever reaches this node can run code on it"
		return
		;;
	*) refuse "RAY_AUTH_MODE must be token or disabled, got '$RAY_AUTH_MODE'" ;;
	esac
	[[ -z ${RAY_AUTH_TOKEN:-} ]] || return 0
	local file=${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}
	[[ -e $file ]] || refuse "no token: set RAY_AUTH_TOKEN, or put one into $file, the same on every node"
	[[ -r $file ]] || refuse "the token's file $file cannot be read by $(id -un)"
	[[ -n $(tr -d '[:space:]' <"$file") ]] || refuse "the token's file $file is empty"
	if (($(stat -L -c '0%a' "$file") & 077)); then
		if chmod go= "$file" 2>/dev/null; then
			say "warning: others could read $file, it was closed to them (mode 0600): think of a new token"
		else
			say "warning: others can read $file, and it is not ours to close: give it mode 0600"
		fi
	fi
}

# shellcheck disable=SC2016  # the inner shell fills these in
answers() { timeout "$PROBE_TIMEOUT_S" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$head_host" "$head_port" 2>/dev/null; }

# A head that is not there yet is waited for; one that does not take the token never will.
wait_for_head() {
	local deadline=$((SECONDS + POWEROPD_HEAD_TIMEOUT)) report=0 said=""
	while ((SECONDS < deadline)); do
		if answers; then
			said=$(timeout "$CALL_TIMEOUT_S" ray health-check --address "$POWEROPD_HEAD" 2>&1) && return 0
			case $said in
			*UNAUTHENTICATED* | *AuthenticationError* | *"nvalid auth"*)
				refuse "the head at $POWEROPD_HEAD does not take the token of this node"
				;;
			esac
			said=" (it says: $(tail -n 1 <<<"$said" | cut -c 1-200))"
		fi
		if ((SECONDS >= report)); then
			say "waiting for the head at $POWEROPD_HEAD, $((deadline - SECONDS)) s left$said"
			report=$((SECONDS + REPORT_EVERY_S))
		fi
		sleep "$PAUSE_S"
	done
	say "the head at $POWEROPD_HEAD did not answer within $POWEROPD_HEAD_TIMEOUT s$said"
	exit 1
}

(($$ != 1)) || trap 'exit 143' TERM INT # the first process of a container ignores them otherwise
role=${1:-}
[[ " $ROLES " == *" $role "* && -n $role ]] || refuse "the first argument must be one of: $ROLES; got '$role'"
shift
read_settings
check_token

export RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED=0
# A worker that asks for no GPU keeps the devices that its node sees, as in a Ray that a run starts by itself.
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=${RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:-0}
# How long Ray would wait for its workers to exit, which those of a run do not: their pool replaces them.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-5}

options=(--block --disable-usage-stats --log-color=false --node-name="$POWEROPD_NODE_NAME")
options+=(--metrics-export-port="$POWEROPD_METRICS_PORT")
if [[ $role == head ]]; then
	if [[ -n ${POWEROPD_GCS_STORAGE:-} ]]; then
		mkdir -p "$POWEROPD_GCS_STORAGE" || refuse "POWEROPD_GCS_STORAGE: $POWEROPD_GCS_STORAGE cannot be made"
		export RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$POWEROPD_GCS_STORAGE
	fi
	options+=(--head --port="$head_port" --num-cpus=0 --resources='{"head": 1}')
	options+=(--include-dashboard=true --dashboard-host="$POWEROPD_DASHBOARD_HOST")
else
	wait_for_head
	options+=(--address="$POWEROPD_HEAD" --resources="{\"$role\": $POWEROPD_WORKERS}")
fi
exec ray start "${options[@]}" "$@"
