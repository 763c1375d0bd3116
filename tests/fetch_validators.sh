#!/usr/bin/env bash
# Puts the programs that check the files for deployment into .tools/bin: kustomize, docker-compose, promtool and
# prometheus, as Debian 13 packages them. They come from the mirror that this Debian's own sources name, are unpacked,
# not installed, and need no root. What is there already is left alone. Their tests are skipped where a program is
# missing.
#
#     tests/fetch_validators.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

release=trixie
packages=(kustomize docker-compose promtool prometheus)
tools=$PWD/.tools
work=$tools/apt

missing=()
for package in "${packages[@]}"; do
	[ -x "$tools/bin/$package" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo "no apt-get here: install ${missing[*]} by hand" >&2; exit 1; }

mkdir -p "$work/lists/partial" "$tools/bin"
# shellcheck disable=SC2016  # apt fills these in
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
	awk '$2 !~ /-/ && $3 == "main" && !done { print $1; done = 1 }')
[ -n "$mirror" ] || { echo "apt names no Debian mirror here: install ${missing[*]} by hand" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror $release main" >"$work/sources.list"
options=(
	-o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=/dev/null"
	-o "Dir::State::lists=$work/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
	-o "APT::Sandbox::User=" -qq
)
timeout 300 apt-get "${options[@]}" update
for package in "${missing[@]}"; do
	(cd "$work" && timeout 300 apt-get "${options[@]}" download "$package")
	dpkg -x "$work/${package}"_*.deb "$work/$package"
	found=$(find "$work/$package" -type f -name "$package" -perm -u+x -size +1M | head -n 1)
	install -m 755 "$found" "$tools/bin/$package"
done
rm -rf "$work"
