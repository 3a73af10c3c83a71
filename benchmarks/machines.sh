#!/usr/bin/env bash
# Rerank on three machines and lose one of them in the middle: are the files still those of one process?
#
#     benchmarks/machines.sh CANDIDATES kill|raylet|cut|none [SECONDS]
#
# The machines are network namespaces of this one (Linux, root): each with an address, host name, processes, /tmp and
# shared memory of its own. SECONDS after the start of the command all processes of the third are killed, or its raylet
# is, or its network is cut. Needs the extra 'ray', in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
candidates=$(realpath "$1") loss=$2 after=${3:-30}
work=$(mktemp -d /var/tmp/machines.XXXX)
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 PATH="$PWD/.venv/bin:$PATH"
rerank=(headrank rerank --candidates "$candidates" --model embedded --batch-size 1)

end() {
  set +e # what is gone already need not go
  for i in 1 2 3; do
    ip netns pids "m$i" | xargs -r kill -9
    ip link del "v$i" 2>/dev/null
    ip netns del "m$i"
  done
  ip link del machines
  rm -rf "$work"
}

start() { # start I FLAGS...: a machine with Ray
  local i=$1
  shift
  ip netns add "m$i"
  ip link add "v$i" type veth peer name eth0 netns "m$i"
  ip link set "v$i" master machines up
  ip -n "m$i" link set lo up
  ip -n "m$i" addr add "10.77.0.$i/24" dev eth0
  ip -n "m$i" link set eth0 up
  ip netns exec "m$i" unshare -mupi --fork --mount-proc bash -c '
    hostname "m$0"; mount --make-rprivate /; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm
    export HOME=/tmp
    ray start "$@" --node-ip-address "10.77.0.$0" --num-cpus 1 --object-store-memory 200000000 --block; true
  ' "$i" "$@" >"$work/ray$i.log" 2>&1 &
}

raylet() { for p in $(ip netns pids "m$1"); do grep -qx raylet "/proc/$p/comm" 2>/dev/null && echo "$p"; done | head -1; }

echo "== one process"
"${rerank[@]}" --output "$work/one"
ip link add machines type bridge
ip link set machines up
trap end EXIT
start 1 --head --port 6379 --include-dashboard=false
sleep 12
start 2 --address 10.77.0.1:6379
start 3 --address 10.77.0.1:6379
sleep 15

echo "== three machines, loss: $loss"
(
  sleep "$after"
  date "+%T lost: $loss"
  case $loss in
    kill) ip netns pids m3 | xargs kill -9 ;;
    raylet) kill -9 "$(raylet 3)" ;;
    cut) ip link set v3 down ;;
  esac
) &
nsenter -t "$(raylet 1)" -m -u -p -i -n env HOME=/tmp RAY_ADDRESS=10.77.0.1:6379 "${rerank[@]}" --workers 3 --output "$work/three"
cmp "$work/one/run.trec" "$work/three/run.trec" && echo "the same bytes"
