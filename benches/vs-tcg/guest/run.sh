#!/bin/bash
# Runs in the guest as root, from the block device that `viv.script=` names. Prints lines `ROW NAME NANOSECONDS`.
# The measured binary and a Dockerfile's files come as a tar on the block device viv-input.
set -u
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
times=${BENCH_TIMES:-5}
mkdir -p /root/bench && cd /root/bench && tar -xf /dev/disk/by-id/virtio-viv-input 2>/dev/null
now() { date +%s%N; }
row() { local name=$1 start end; shift; start=$(now); "$@" >/tmp/out 2>&1 || { echo "ROW-FAILED $name $(tail -c 300 /tmp/out | tr '\n' ' ')"; return 1; }; end=$(now); echo "ROW $name $((end - start))"; }

for _ in $(seq "$times"); do
  for what in integer memory floating spawn; do ./work $what | sed 's/^/ROW /'; done
  row node node -e 0
  row python3 python3 -c 0
done

docker_ready() { until docker version >/dev/null 2>&1; do sleep 0.05; done; }
for _ in $(seq "$times"); do
  start=$(now)
  dockerd >/tmp/dockerd.log 2>&1 & daemon=$!
  docker_ready; echo "ROW dockerd $(($(now) - start))"
  row build docker build --no-cache -t bench image
  row run docker run --rm --network none bench
  docker rmi -f bench >/dev/null 2>&1
  kill $daemon; wait $daemon 2>/dev/null
  echo ROW-IDLE
  sleep 2
done
