# The Ruby runner of an Ember guest: an interpreter that is warm before there is anything to run.
#
# What it and the agent say to each other is written down in the Python one. Each program runs in a
# process that is forked for it, as `ruby` would run it, and nothing of it is left for the next. A
# spare that was forked before the guest was cloned is the same in all clones, so what is random is
# seeded anew before a program runs. Code that keeps its own can be told:
# `EmberRunner.on_reseed { ... }`.

require "socket"

module EmberRunner
  SETUP, READY, FORK, SPARE, WAITING, RUN = 1, 2, 3, 4, 5, 6
  IN_FILE = 1
  TERMINAL = 1
  HEADER = "CCS<L<"
  HEADER_SIZE = 8
  # More is sent in a file.
  MAX_INLINE = 64 * 1024
  # Descriptors and credentials that may come with a message.
  CONTROL = 256
  # `asm-generic/ioctls.h`
  TIOCSCTTY = 0x540E
  # For setns(2), prctl(2) and capset(2), which Ruby has no methods for: their numbers on x86-64.
  SYS_CAPSET, SYS_PRCTL, SYS_SETNS = 126, 157, 308
  CLONE_NEWPID = 0x20000000
  PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 24, 38, 47
  PR_CAP_AMBIENT_CLEAR_ALL = 4
  SECCOMP_MODE_FILTER = 2
  CAPABILITY_VERSION = 0x20080522
  # What a spare that cannot run its program exits with, and says why on its standard error.
  CANNOT_RUN = 126

  @hooks = []

  module_function

  # Has the block called before each program, where it has to draw new random numbers.
  def on_reseed(&block)
    @hooks << block
  end

  def reseed
    srand
    Object.const_get(:OpenSSL)::Random.seed(Random.urandom(32)) if Object.const_defined?(:OpenSSL)
    @hooks.each(&:call)
  end

  def transmit(socket, kind, *files)
    rights = files.empty? ? [] : [Socket::AncillaryData.unix_rights(*files)]
    socket.sendmsg([kind, 0, 0, 0].pack(HEADER), 0, nil, *rights)
  end

  # The next message's kind, payload and descriptors. None at the end.
  def receive(socket)
    data = "".b
    files = []
    wanted = HEADER_SIZE
    loop do
      while data.bytesize < wanted
        part, _, _, *controls =
          socket.recvmsg(HEADER_SIZE + MAX_INLINE, 0, CONTROL, scm_rights: true)
        controls.each { |it| files.concat(it.unix_rights) if it.cmsg_is?(:SOCKET, :RIGHTS) }
        return nil if part.nil? || part.empty?
        data << part
      end
      kind, flags, _, length = data.unpack(HEADER)
      if flags & IN_FILE != 0
        file = files.pop
        payload = file.pread(length, 0)
        file.close
        return kind, payload, files
      end
      return kind, data.byteslice(HEADER_SIZE, length), files if wanted == HEADER_SIZE + length
      wanted += length
    end
  end

  # The parts of a payload behind its options.
  def fields(payload)
    place = 1
    parts = []
    while place < payload.bytesize
      length = payload.byteslice(place, 4).unpack1("L<")
      parts << payload.byteslice(place + 4, length)
      place += 4 + length
    end
    parts
  end

  def strings(list)
    list.split("\0").map { |it| it.force_encoding(Encoding.default_external) }
  end

  # Does for nobody what every program will do, so that the pages that it writes are this process's
  # own before it waits, and each clone of the guest has them.
  def rehearse
    RubyVM::InstructionSequence.compile("[1, 2].map { |n| n.to_s }.join(' ')").eval
    srand
    ENV.replace(ENV.to_h)
    GC.start
  end

  # Where bytes are, for system calls: as a text, `syscall` takes none with a zero in it. They have to
  # be kept until it is done.
  def address(bytes)
    [bytes].pack("P").unpack1("J")
  end

  def prctl(option, *arguments)
    syscall(SYS_PRCTL, option, *(arguments + [0, 0, 0, 0]).first(4))
  end

  # Gives up for good what a program is not to have: every right beyond its user's, and the system
  # calls that the filter denies.
  def confine(rules)
    64.times do |capability|
      prctl(PR_CAPBSET_DROP, capability)
    rescue Errno::EINVAL
      # There are no more.
      break
    end
    header = [CAPABILITY_VERSION, 0].pack("Ll")
    none = "\0" * 24
    syscall(SYS_CAPSET, address(header), address(none))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    program = [rules.bytesize / 8, address(rules)].pack("Sx6J")
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address(program))
  end

  # Makes spares. Comes back in a spare that has something to run, with that.
  def serve(control)
    while (message = receive(control))
      kind, rules, namespaces = message
      raise "the agent sent a message of kind #{kind}" if kind != FORK

      near, far = UNIXSocket.pair
      # The agent learns from the kernel who waits.
      far.setsockopt(Socket::SOL_SOCKET, Socket::SO_PASSCRED, 1)
      child = fork
      if child.nil?
        # Of the children, not of this process.
        syscall(SYS_SETNS, namespaces[0].fileno, CLONE_NEWPID) if namespaces.any?
        exit!(0) if fork
        control.close
        far.close
        Process.setsid
        if namespaces.any?
          namespaces.drop(1).each { |it| syscall(SYS_SETNS, it.fileno, 0) }
          confine(rules)
        end
        namespaces.each(&:close)
        rehearse
        transmit(near, WAITING)
        work = receive(near)
        near.close
        exit!(0) if work.nil?
        return work
      end
      Process.wait(child)
      namespaces.each(&:close)
      near.close
      transmit(control, SPARE, far)
      far.close
    end
    exit!(0)
  end

  # Takes over the streams, directory, environment and arguments of a program.
  def become(payload, files)
    directory, code, arguments, variables = fields(payload)
    raise "#{files.size} descriptors came along, not 3" if files.size != 3

    [STDIN, STDOUT, STDERR].zip(files) { |stream, file| stream.reopen(file) }
    files.each(&:close)
    STDERR.sync = true
    if payload.getbyte(0) & TERMINAL != 0
      STDIN.ioctl(TIOCSCTTY, 0)
      STDOUT.sync = true
    end
    Dir.chdir(directory)
    ENV.replace(strings(variables).to_h { |it| it.split("=", 2) })
    reseed
    [code, strings(arguments)]
  end

  # The program's instructions. What cannot be read is said as `ruby` says it.
  def load(code, arguments)
    path = arguments.shift
    ARGV.replace(arguments)
    if path == "-c"
      $0 = "-e"
      return RubyVM::InstructionSequence.compile(code.force_encoding(Encoding::UTF_8), "-e", "-e")
    end
    $0 = path
    unless File.file?(path) && File.readable?(path)
      STDERR.puts "ruby: No such file or directory -- #{path} (LoadError)"
      exit!(1)
    end
    source = File.binread(path)
    if (place = source =~ /^__END__\r?\n/n)
      Object.const_set(:DATA, File.open(path))
      DATA.seek(place + source.byteslice(place..).index("\n") + 1)
    end
    RubyVM::InstructionSequence.compile_file(path)
  end

  # Has an error say of where it came from what it would say without a runner.
  def own(error)
    while error
      trace = error.backtrace&.reject { |it| it.start_with?("#{__FILE__}:") }
      error.set_backtrace(trace.map { |it| it.sub("<compiled>'", "<main>'") }) if trace
      error = error.cause
    end
  end
end

control = UNIXSocket.for_fd(3)
control.close_on_exec = true
# What it may do beyond its user, to confine its programs, is nothing for programs that it starts.
EmberRunner.prctl(EmberRunner::PR_CAP_AMBIENT, EmberRunner::PR_CAP_AMBIENT_CLEAR_ALL)
kind, setup = EmberRunner.receive(control)
abort "the agent did not say what to run first" if kind != EmberRunner::SETUP
RubyVM::InstructionSequence.compile(setup.force_encoding(Encoding::UTF_8), "<setup>").eval
STDOUT.flush
# What is there now is old, and so stays shared with the spares.
4.times { GC.start }
EmberRunner.transmit(control, EmberRunner::READY)

_, payload, files = EmberRunner.serve(control)
# From here on this is a spare that has something to run.
begin
  code, arguments = EmberRunner.become(payload, files)
rescue StandardError => error
  STDERR.puts "the program cannot be run: #{error}"
  exit!(EmberRunner::CANNOT_RUN)
end
begin
  program = EmberRunner.load(code, arguments)
rescue SyntaxError => error
  # As `ruby` says it: nothing has run that it could have come from.
  STDERR.puts error.message
  exit 1
end
begin
  program.eval
rescue Exception => error
  EmberRunner.own(error)
  raise
end
