# Completion of ringway for fish: `ringway complete` says what may stand at the cursor, asking the daemon for 0.3 s at most.

function __ringway_complete
    set -l lines (ringway complete --line (commandline -cp | string collect) 2>/dev/null)
    switch "$lines[1]"
        case ':files'
            __fish_complete_path (commandline -ct)
        case ':directories'
            __fish_complete_directories (commandline -ct)
        case '*'
            printf '%s\n' $lines
    end
end
complete -c ringway -f -a '(__ringway_complete)'
