# What the clients' scripts share. To be sourced from a folder below tests/clients.

cache="${HEARKEN_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/hearken}/clients"

# alone NAME: waits until no other run of these scripts is bringing this client; the lock goes with the script.
alone() {
    mkdir -p "$cache"
    exec 9>"$cache/$1.lock"
    ! command -v flock >/dev/null || flock 9
}

# python NAME: a Python of its own with what requirements.txt pins, made anew when that changes; sets $python.
python() {
    local home="$cache/$1"
    python="$home/bin/python"
    alone "$1"
    cmp -s requirements.txt "$home/requirements.txt" && return
    rm -rf "$home"
    python3 -m venv "$home"
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$home/"
}

# serve [OPTIONS]: starts the server on a free port with a journal of its own in $scratch, waits until it is ready, sets $HEARKEN_URL, and stops it when
# the script ends.
serve() {
    local log
    scratch="$(mktemp -d)"
    log="$scratch/log"
    "$HEARKEN_BIN" serve --set server.listen=127.0.0.1:0 --set log.level=info --set "journal.path=$scratch/journal.sqlite" "$@" 2>"$log" &
    server=$!
    trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$scratch"' EXIT
    for _ in $(seq 600); do
        HEARKEN_URL="$(sed -n 's/\x1b\[[0-9;]*m//g; s/.*listening address=\([0-9.:]*\).*/http:\/\/\1/p' "$log" | head -1)"
        [ -z "$HEARKEN_URL" ] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.2
    done
    [ -n "$HEARKEN_URL" ] || { cat "$log" >&2; return 1; }
    export HEARKEN_URL
}

# node_project NAME: what package-lock.json pins, made anew when that changes, as this folder's node_modules.
node_project() {
    . ../../../scripts/tools.sh
    need_node || return 1
    local home="$cache/$1"
    alone "$1"
    if ! cmp -s package-lock.json "$home/installed"; then
        rm -rf "$home"
        mkdir -p "$home"
        cp package.json package-lock.json .npmrc "$home/"
        (cd "$home" && npm ci --no-audit --no-fund --loglevel=error)
        cp package-lock.json "$home/installed"
    fi
    ln -sfn "$home/node_modules" node_modules
}
