# Keeps QEMU from delivering an injected interrupt to a VM of the lab a second time (docs/lab.md).
#
# It does so when a CPU leaves its loop for no interrupt while the vector of the last injection is
# still remembered; leaving the VM for an interrupt makes it forget. So every entry into a VM that
# injects is made to end at once: a perf event on `kvm_entry`, which comes with interrupts off, wakes
# its reader, and perf does that by an interrupt to its own CPU. Two small BPF programs choose the
# entries: one marks the thread at `kvm_inj_virq`, the other takes the mark at `kvm_entry` and gives
# it to perf, which samples for anything but 0.
#
# In Perl because each Debian has it, with system calls by number; x86_64 only, as QEMU's SVM.
use strict;
use warnings;

# asm/unistd_64.h, linux/bpf.h, linux/perf_event.h, linux/mman.h.
my ($SYS_MMAP, $SYS_IOCTL, $SYS_PERF_EVENT_OPEN, $SYS_BPF) = (9, 16, 298, 321);
my ($MAP_CREATE, $PROG_LOAD, $MAP_LRU_HASH, $PROG_TRACEPOINT) = (0, 5, 9, 5);
my ($MAP_LOOKUP_ELEM, $MAP_UPDATE_ELEM, $GET_CURRENT_PID_TGID) = (1, 2, 14);
my ($PERF_TYPE_TRACEPOINT, $PERF_FLAG_FD_CLOEXEC, $PERF_EVENT_IOC_SET_BPF) = (2, 8, 0x40042408);
my ($PROT_READ, $MAP_SHARED) = (1, 1);
my $EVENTS = "/sys/kernel/tracing/events/kvm";

sub call {
    my ($what, $number, @arguments) = @_;
    my $result = syscall($number, @arguments);
    die "$what: $!\n" if $result == -1;
    return $result;
}

# One instruction: code, destination, source, offset, constant.
sub instruction {
    my ($code, $to, $from, $offset, $constant) = @_;
    return pack("CCsl", $code, $to | $from << 4, $offset, $constant);
}

sub address { return unpack("Q", pack("P", $_[0])); }

my $attributes = pack("L4x48", $MAP_LRU_HASH, 8, 8, 4096);
my $marks = call("making a map", $SYS_BPF, $MAP_CREATE, $attributes, length $attributes);

# The thread, as a key at r10-8; the map in r1 and the key's address in r2.
my $thread = instruction(0x85, 0, 0, 0, $GET_CURRENT_PID_TGID) . instruction(0x7b, 10, 0, -8, 0);
my $lookup = instruction(0x18, 1, 1, 0, $marks) . instruction(0, 0, 0, 0, 0)
    . instruction(0xbf, 2, 10, 0, 0) . instruction(0x07, 2, 0, 0, -8);
my $end = instruction(0xb7, 0, 0, 0, 0) . instruction(0x95, 0, 0, 0, 0);

# marks[thread] = 1; return 0
my $mark = $thread . instruction(0x7a, 10, 0, -16, 1) . $lookup
    . instruction(0xbf, 3, 10, 0, 0) . instruction(0x07, 3, 0, 0, -16)
    . instruction(0xb7, 4, 0, 0, 0) . instruction(0x85, 0, 0, 0, $MAP_UPDATE_ELEM) . $end;
# found = marks[thread]; if there is none, return 0; marks[thread] = 0; return found
my $take = $thread . $lookup . instruction(0x85, 0, 0, 0, $MAP_LOOKUP_ELEM)
    . instruction(0x15, 0, 0, 4, 0)
    . instruction(0x79, 6, 0, 0, 0) . instruction(0x7a, 0, 0, 0, 0)
    . instruction(0xbf, 0, 6, 0, 0) . instruction(0x95, 0, 0, 0, 0) . $end;

sub load {
    my ($code) = @_;
    my $licence = "Dual MIT/GPL\0";
    my $attributes = pack("LLQQx96", $PROG_TRACEPOINT, length($code) / 8, address($code), address($licence));
    return call("loading a program", $SYS_BPF, $PROG_LOAD, $attributes, length $attributes);
}

# It lasts as long as a process has it open, and mapped: mappings of perf's are not inherited, so it is
# the child that makes all of it. The parent ends when that is done, or says that it is not.
pipe(my $done, my $told) or die "pipe: $!\n";
my $child = fork();
die "fork: $!\n" unless defined $child;
if ($child) {
    close $told;
    # Its end comes when all is in place, or the child has died and has said why.
    my $end = <$done>;
    exit(defined $end ? 0 : 1);
}

# Perf gives up on an event that samples more often than this until the next tick, and lowers the bound
# by itself where samples take long (admin-guide/sysctl/kernel.rst). Each is needed. In this order: the
# second one ends the first one's being writable.
for (["perf_event_max_sample_rate", 100_000_000], ["perf_cpu_time_max_percent", 0]) {
    my ($name, $value) = @$_;
    open my $file, ">", "/proc/sys/kernel/$name" or die "$name: $!\n";
    print $file "$value\n" and close $file or die "$name: $!\n";
}

my %programs = (kvm_inj_virq => load($mark), kvm_entry => load($take));
my $cpus = () = glob("/sys/devices/system/cpu/cpu[0-9]*");
for my $cpu (0 .. $cpus - 1) {
    for my $event (sort keys %programs) {
        open my $file, "<", "$EVENTS/$event/id" or die "$event: $!\n";
        # Each is a sample, and each sample wakes.
        my $attributes = pack("LLQQx24LLx8", $PERF_TYPE_TRACEPOINT, 64, int <$file>, 1, 1, 0);
        my $perf = call("opening $event", $SYS_PERF_EVENT_OPEN, $attributes, -1, $cpu, -1, $PERF_FLAG_FD_CLOEXEC);
        # Two pages that it may only read: the newest overwrite the oldest, and no one reads them.
        call("mapping $event", $SYS_MMAP, 0, 8192, $PROT_READ, $MAP_SHARED, $perf, 0);
        # A program is the tracepoint's, whichever event brings it: a second time is refused.
        call("attaching to $event", $SYS_IOCTL, $perf, $PERF_EVENT_IOC_SET_BPF, $programs{$event}) if $cpu == 0;
    }
}
print $told "in place\n" and close $told or die "telling: $!\n";
open STDOUT, ">", "/dev/null";
open STDERR, ">", "/dev/null";
sleep while 1;
