#!/usr/bin/env bash
# The first host of a throw-away Slurm cluster: the first process of namespaces of its own, in which nothing that is
# mounted, bound or started reaches the machine outside, and which end with this process.
set -euo pipefail
hostname node1
mount -t tmpfs tmpfs /run
mkdir -p /run/munge /run/slurm/{node1,node2,state} /run/netns
printf '127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
for gpu in {0..7}; do mknod /run/gpu$gpu c 1 3; done

ip netns add node2
ip link add eth0 type veth peer name eth0 netns node2
for host in 1 2; do
  inside=$([ $host = 1 ] || echo '-netns node2')
  ip $inside address add 10.77.0.$host/24 dev eth0
  ip $inside link set eth0 up
  ip $inside link set lo up
done

head --bytes 128 /dev/urandom > /run/munge/key
chmod 400 /run/munge/key
munged --foreground --force --key-file /run/munge/key --seed-file /run/munge/seed --pid-file /run/munge/pid &
until [ -S /run/munge/munge.socket.2 ]; do sleep 0.02; done
slurmctld -D &
slurmd -D -N node1 &
nsenter --net=/run/netns/node2 unshare --uts --pid --fork --kill-child --mount-proc \
  bash -c 'hostname node2; slurmd -D -N node2 & wait' &
wait
