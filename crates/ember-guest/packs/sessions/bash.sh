# The bash driver of Ember's sessions: what python.py beside it says holds here, too.
#
# The shell is an interactive one without a terminal: what breaks off a command in such a one, SIGINT
# above all, is not its end, and it reads on. What it reads is always the same line of steps, which
# fetches a cell and runs it outside of any function, so that what it declares is the shell's. How a cell
# has ended is its exit status, as it is `$?` for the next; one other than 0 is told as an error.

case $- in
*i*) ;;
*)
  # What it says of having no terminal is nobody's matter.
  exec /bin/bash --noprofile --noediting --rcfile "$0" -is -- "$1" 3>&2 2>/dev/null
  ;;
esac
exec 2>&3 3>&-
set +o history +o histexpand
unset HISTFILE

readonly __ember_channel=$1
# It is there anew whenever it is read. What the cell starts does not have the channel, and what it has
# traced is not what is done here.
readonly __ember_step="__ember_was=\$?; exec 0<<<\"\$__ember_step\"; \
{ __ember_next \$__ember_was; } &>/dev/null; \
{ builtin eval \"\$__ember_code\"; } 0</dev/null $1>&-; \
{ __ember_end \$?; } &>/dev/null"
shift
__ember_was=0
__ember_cell=
__ember_code=
__ember_status=0
__ember_interrupted=
__ember_trap=

__ember_say() {
  builtin printf "$@" >&"$__ember_channel"
}

__ember_error() {
  __ember_say '{"type": "error", "name": "%s", "message": "%s", "traceback": "%s: %s\\n", "frames": []}\n' \
    "$1" "$2" "$1" "$2"
}

# Has an interrupt wait until there is all of a cell, for half of a request is none.
__ember_shut() {
  __ember_trap=$(builtin trap -p INT)
  __ember_interrupted=
  builtin trap __ember_interrupted=1 INT
}

# Fetches a cell, and has its number, its code and the status that it begins with.
__ember_next() {
  # Its length is in bytes, whatever its characters are.
  local LC_ALL=C IFS=' ' line= part words length
  # The one before was broken off.
  __ember_end "$1"
  while :; do
    part=
    builtin read -r -u "$__ember_channel" part
    case $? in
    0) ;;
    1) builtin exit 0 ;;
    # A signal has come, or the cell has set TMOUT: there is more of the line to come.
    *)
      line+=$part
      builtin continue
      ;;
    esac
    line+=$part
    words=($line)
    line=
    case ${words[0]-} in
    reseed) RANDOM=$SRANDOM ;;
    run)
      length=${words[2]}
      __ember_cell=${words[1]}
      # `read` would take a system call for each byte. What an interrupt ends before it listens to none has
      # read nothing, and is done again.
      __ember_code=
      until [[ $length == 0 || $__ember_code == *. ]]; do
        __ember_code=$(builtin trap '' INT; /usr/bin/head -c "$length" <&"$__ember_channel"; builtin echo .)
      done
      __ember_code=${__ember_code%.}
      if ((${#__ember_code} != length)); then
        __ember_error ValueError 'a cell of bash cannot have bytes that are zero'
        __ember_code=
      fi
      builtin trap - INT
      builtin eval "$__ember_trap"
      if [[ -n $__ember_interrupted ]]; then
        __ember_end 130
      fi
      # Which would end a shell that ends with the first error.
      [[ $- == *e* ]] || builtin return "$__ember_status"
      builtin return 0
      ;;
    esac
  done
}

# Tells how the cell has ended, if there is one.
__ember_end() {
  if [[ -n $__ember_cell ]]; then
    local number=$__ember_cell
    # Until then, an interrupt begins the steps anew, and this with them.
    __ember_shut
    __ember_cell=
    __ember_code=
    __ember_status=$1
    # Nobody sees a prompt here.
    PS0= PS1= PS2=
    if (($1 != 0)); then
      __ember_error ExitStatus "$1"
    fi
    __ember_say 'done %s\n' "$number"
  fi
  builtin return 0
}

PS0= PS1= PS2=
__ember_shut
__ember_say 'done 0\n'
exec 0<<<"$__ember_step"
