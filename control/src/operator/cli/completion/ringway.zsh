#compdef ringway
# Completion of ringway for zsh: `ringway complete` says what may stand at the cursor, asking the daemon for 0.3 s at most.

_ringway() {
    local -a lines offered open
    local line word about
    lines=("${(@f)$(${words[1]} complete --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    case ${lines[1]} in
        :files) _files; return ;;
        :directories) _files -/; return ;;
    esac
    for line in $lines; do
        word=${line%%$'\t'*}
        about=${line#*$'\t'}
        [[ $about == $line ]] && about=
        # Further words may follow a slash: no blank is put behind it.
        if [[ $word == */ ]]; then
            open+=("${word//:/\\:}:$about")
        else
            offered+=("${word//:/\\:}:$about")
        fi
    done
    _describe -t words 'ringway' offered -- open -S ''
}

if [ "$funcstack[1]" = "_ringway" ]; then
    _ringway "$@"
else
    compdef _ringway ringway
fi
