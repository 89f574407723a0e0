# Completion of ringway for bash: `ringway complete` says what may stand at the cursor, asking the daemon for 0.3 s at most.

_ringway() {
    local line=${COMP_LINE:0:COMP_POINT} word begun i
    mapfile -t COMPREPLY < <("$1" complete --line "$line" 2>/dev/null)
    word=${line##*[[:space:]]}
    case ${COMPREPLY[0]-} in
        :files)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;
        :directories)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return
            ;;
    esac
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
    # What bash takes for words of their own, because of a colon, is not written twice.
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        begun=${word%"${word##*:}"}
        for i in "${!COMPREPLY[@]}"; do
            COMPREPLY[i]=${COMPREPLY[i]#"$begun"}
        done
    fi
    # Further words may follow a comma or a slash.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _ringway ringway
