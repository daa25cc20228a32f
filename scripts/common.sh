# Shared by the scripts here: what they need of the machine, and where the build goes.

# shellcheck shell=bash
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pgcowfs/target}

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# The directory of a PostgreSQL server's programs, empty if there is none.
postgres_bin() {
  local dir
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -Vr) /usr/pgsql-*/bin /usr/local/pgsql/bin; do
    [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && { echo "$dir"; return; }
  done
}

# Debian's and Ubuntu's packages for whatever of this is missing.
missing_packages() {
  command -v c++ >/dev/null && command -v make >/dev/null || echo build-essential
  # RocksDB's bindings are generated with it. (libclang-cpp is another library.)
  compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || ldconfig -p 2>/dev/null | grep -qE 'libclang(-[0-9.]+)?\.so' || echo libclang-dev
  command -v fusermount3 >/dev/null || echo fuse3
  [ -n "$(postgres_bin)" ] && command -v pgbench >/dev/null && command -v psql >/dev/null || echo postgresql
}

install_missing() {
  local packages sudo=
  packages=$(missing_packages)
  if [ -n "$packages" ]; then
    say "installing $(echo $packages)"
    command -v apt-get >/dev/null || die "please install: $(echo $packages) (this script knows apt only)"
    if [ "$(id -u)" != 0 ]; then
      sudo=sudo
      command -v sudo >/dev/null || die "please install as root: apt-get install $(echo $packages)"
    fi
    $sudo apt-get update -q >&2
    # shellcheck disable=SC2086 # one word per package
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $packages >&2
  fi
  command -v cargo >/dev/null || die "there is no Rust toolchain: see https://rustup.rs"
  own_build -p pgcowfs -p pgcowfs-cli
}

# The build directory outlives the checkout, for RocksDB's sake. Cargo names what it builds by the path within the
# checkout, and would take another checkout's programs for this one's. What has to go is said as to `cargo clean`.
own_build() {
  local here marker=$CARGO_TARGET_DIR/built-from
  here=$(pwd)
  [ "$(cat "$marker" 2>/dev/null)" != "$here" ] || return 0
  cargo clean -q --release "$@" || die "cannot clean $CARGO_TARGET_DIR"
  mkdir -p "$CARGO_TARGET_DIR"
  printf '%s\n' "$here" > "$marker"
}

DENY_VERSION=0.20.2

# cargo-deny, which judges the crates that the program is made of by deny.toml. It is built once (a few minutes) and
# kept outside of the checkout.
cargo_deny() {
  local root=${XDG_CACHE_HOME:-$HOME/.cache}/pgcowfs
  if [ "$("$root/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $DENY_VERSION" ]; then
    say "installing cargo-deny $DENY_VERSION"
    env -u CARGO_TARGET_DIR cargo install -q cargo-deny --version "$DENY_VERSION" --locked --root "$root" >&2 || {
      say "SKIPPED: cargo deny: it cannot be installed"
      return 0
    }
  fi
  "$root/bin/cargo-deny" "$@"
}

# A Python that has matplotlib, kept in a place of its own; empty if it cannot be had.
plot_python() {
  local venv=${XDG_CACHE_HOME:-$HOME/.cache}/pgcowfs/plot
  if ! "$venv/bin/python" -c 'import matplotlib' 2>/dev/null; then
    say "installing matplotlib in $venv"
    python3 -m venv "$venv" >&2 && "$venv/bin/pip" install -q matplotlib >&2 || return 0
  fi
  echo "$venv/bin/python"
}

# Builds the long harness in tests/NAME.rs and runs it; its exit status is 3 when there can be no verdict.
run_harness() {
  local name=$1 dir program args=()
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --dir)
        dir=${2:?--dir needs a directory}
        mkdir -p "$dir" && dir=$(cd "$dir" && pwd) || exit 3
        export PGCOWFS_TEST_DIR=$dir
        shift
        ;;
      *) args+=("$1") ;;
    esac
    shift
  done
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 3
  (install_missing) || exit 3
  program=$(cargo test --release --workspace --test "$name" --no-run --message-format=json-render-diagnostics |
    sed -n "s|.*\"executable\":\"\([^\"]*/$name-[^\"]*\)\".*|\1|p")
  [ -x "$program" ] || { printf '%s: the build failed: no verdict\n' "$name" >&2; exit 3; }
  exec "$program" --long "${args[@]}"
}
