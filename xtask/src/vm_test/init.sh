#!/bin/sh
# The first process of the machine: runs the tests, reports on the console, and turns the machine off.
export PATH=/bin HOME=/tmp

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
# devtmpfs does not make these.
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
mkdir -p /sys/fs/bpf /run/netns /var/lib
mount -t bpf bpf /sys/fs/bpf
echo /bin/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
for module in veth bridge vxlan dummy 8021q sch_ingress cls_bpf nf_tables nft_chain_nat nft_masq nft_ct; do
    modprobe "$module" || echo "modprobe $module: $?"
done

report() {
    echo "VM-TEST: $*"
}

count=0
failed=0

# Runs a test and reports how it ended, and after how many seconds.
check() {
    name=$1
    shift
    begin=$(cut -d. -f1 /proc/uptime)
    count=$((count + 1))
    if "$@" >/tmp/output 2>&1; then
        word=passed
    else
        word="FAILED ($?)"
        failed=$((failed + 1))
        cat /tmp/output
        tail -n 40 /run/podnet/lab/podnet-lab/node1/daemon.log
        podnet lab down
    fi
    report "$name $word, $(($(cut -d. -f1 /proc/uptime) - begin)) s"
}

# A lab of so many nodes in a mode: every pod reaches every other, and the status says how.
lab() {
    podnet lab up --nodes "$1" --mode "$2" &&
        podnet lab ping &&
        podnet status --socket /run/podnet/lab/podnet-lab/node1/podnet.sock &&
        grep '^Datapath .*programs attached' /tmp/output &&
        podnet lab down
}

report "kernel $(uname -r)"
check "lab of one node" lab 1 direct
grep -E '^(Kernel|Datapath|Warning)' /tmp/output | while read -r line; do report "$line"; done
# Times are measured elsewhere.
skip="--skip cost::"
if grep -q '^Kernel .*lacks TCX' /tmp/output; then
    skip="$skip --skip tcx::"
fi
check "lab of three nodes, direct" lab 3 direct
check "lab of three nodes, overlay" lab 3 overlay
# Unquoted: several words.
check "program tests ($skip)" programs --test-threads 2 $skip
report "$(grep '^test result' /tmp/output)"
if [ "$failed" -eq 0 ]; then report "result passed"; else report "result $failed of $count failed"; fi
sync
poweroff -f
