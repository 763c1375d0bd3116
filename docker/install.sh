#!/usr/bin/env bash
# The steps that turn Debian 12 into a node, in this order. docker/Dockerfile runs them, and `make image-test` runs the
# Dockerfile's lines in a root of its own. As root:
#
#     docker/install.sh system             Debian's packages, with their security fixes
#     docker/install.sh packages cpu|gpu   the pinned Python packages, in /opt/poweropd/venv
#     docker/install.sh user               the user poweropd, and /shared, which is theirs
#     docker/install.sh code               what is in /app: readable for all, compiled, and root's
#
# pip takes its index from its own configuration (/etc/pip.conf, PIP_*); TORCH_INDEX_URL is a second one, for where
# the first has no CPU build of torch.
set -euo pipefail

readonly VENV=/opt/poweropd/venv CODE=/app NAME=poweropd ID=1000

# At run time vLLM compiles a part of its sampler, and Triton its kernels: that takes a C++ compiler and Python's
# headers. vLLM's CPU build is linked against libnuma; NCCL opens libibverbs where there is InfiniBand. KubeRay's own
# probes call wget, and so does docker/healthcheck.sh. tini reaps what Ray's processes leave.
system() {
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get upgrade -qq --yes
	apt-get install -qq --yes --no-install-recommends \
		python3 python3-venv python3-dev g++ libnuma1 ibverbs-providers ca-certificates tini wget
	apt-get clean
	rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log
}

packages() {
	local pins=$CODE/requirements/image-$1.txt
	[[ -f $pins ]] || refuse "packages takes cpu or gpu, got '$1'"
	local index=()
	[[ -z ${TORCH_INDEX_URL:-} ]] || index=(--extra-index-url "$TORCH_INDEX_URL")
	python3 -m venv "$VENV"
	# DS_BUILD_OPS=0: DeepSpeed compiles none of its kernels. --no-deps: see lock in the Makefile.
	DS_BUILD_OPS=0 "$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
		--root-user-action=ignore --no-deps "${index[@]}" --requirement "$pins"
}

user() {
	groupadd --gid "$ID" "$NAME"
	useradd --uid "$ID" --gid "$ID" --create-home --shell /bin/bash "$NAME"
	install --directory --owner="$ID" --group="$ID" --mode=755 /shared /shared/runs
}

# A checkout keeps the umask of whoever made it.
code() {
	chmod --recursive u=rwX,go=rX "$CODE"
	python3 -m compileall -q "$CODE"
}

refuse() {
	echo "install.sh: $*" >&2
	exit 2
}

step=${1:-}
case $step in
system | user | code) "$step" ;;
packages) packages "${2:-}" ;;
*) refuse "the first argument must be system, packages, user or code; got '$step'" ;;
esac
