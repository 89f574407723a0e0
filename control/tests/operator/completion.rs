//! Completion in the shells themselves: what each of them offers at the end of a line, with the devices of a daemon that runs.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::{Daemon, SOON, finish};

/// A daemon with a little of everything.
fn daemon() -> Daemon {
    let daemon = Daemon::start();
    daemon.run("dev add name web-1 mgmtdev bridge/br0").good();
    daemon.run("dev add name web-2 mgmtdev sim/net").good();
    daemon.run("mgmtdev add name simnic/nic0").good();
    daemon.run("port add simnic/nic0 sfnum 7").good();
    daemon
}

/// Lines, each with all that may stand at its end.
fn cases(daemon: &Daemon) -> Vec<(&'static str, Vec<String>)> {
    let core = daemon.run("-j core show").json()["core"].as_object().unwrap().keys().next().unwrap().clone();
    [
        ("ringway dev del web", &["web-1", "web-2"][..]),
        ("ringway dev show ", &["web-1", "web-2"]),
        ("ringway -j d sh web-2", &["web-2"]),
        ("ringway why ", &["web-1", "web-2"]),
        ("ringway dev add name x mgmtdev bridge/", &["bridge/br0", "bridge/"]),
        ("ringway dev set name web-1 spoofchk o", &["on", "off"]),
        ("ringway dev set name web-2 sw", &["swap"]),
        ("ringway bridge vlan add dev ", &["web-1"]),
        ("ringway port function set simnic/nic0/7 max", &["max_io_eqs"]),
        ("ringway port del ", &["simnic/nic0/7"]),
        ("ringway port add sim", &["simnic/nic0"]),
        ("ringway dev vstats show web-1 qidx ", &["0", "1"]),
        ("ringway mgmtdev del simn", &["simnic/nic0", "simnic/"]),
        ("ringway dev add name x mgmtdev sim/net device_features MAC,MT", &["MAC,MTU"]),
        ("ringway inspect dev", &["devices/"]),
        ("ringway dev add core ", &[core.as_str()]),
        ("ringway dev add name x mgmtdev sim/net spoof", &[]),
    ]
    .map(|(line, words)| (line, words.iter().map(|word| (*word).to_owned()).collect()))
    .into()
}

/// Completes until it comes to this: `ringway complete` waits for the daemon for 300 ms and no longer, whatever else the machine does.
#[track_caller]
fn comes_to<T: PartialEq + std::fmt::Debug>(line: &str, expected: &T, mut completed: impl FnMut() -> T) {
    let until = Instant::now() + SOON;
    let mut last = completed();
    while last != *expected && Instant::now() < until {
        last = completed();
    }
    assert_eq!(last, *expected, "{line}");
}

/// The same without their order, which shells choose.
fn set(words: &[String]) -> BTreeSet<String> {
    words.iter().cloned().collect()
}

/// A shell, in which `ringway` is this build's program and asks this daemon.
fn shell(name: &str, daemon: &Daemon, ctl: &Path) -> Command {
    let path = format!("{}:{}", daemon.programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(name);
    command.env("PATH", path).env("RINGWAY_CTL", ctl).env("HOME", &daemon.dir).current_dir(&daemon.dir);
    command
}

#[test]
fn bash_completes_what_the_daemon_knows_and_waits_for_none() {
    let daemon = daemon();
    let script = daemon.dir.join("completion");
    std::fs::write(&script, daemon.run("completion bash").good()).unwrap();
    // As bash calls it at the end of this line.
    let completed = |ctl: &Path, line: &str| -> Vec<String> {
        let call = format!(
            "source {}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _ringway ringway 2>/dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let mut command = shell("bash", &daemon, ctl);
        command.args(["--norc", "-c", &call]);
        finish(command).good().lines().map(str::to_owned).filter(|word| !word.is_empty()).collect()
    };
    for (line, expected) in cases(&daemon) {
        comes_to(line, &expected, || completed(&daemon.ctl(), line));
    }
    let files = completed(&daemon.ctl(), &format!("ringway config check {}/compl", daemon.dir.display()));
    assert_eq!(files, [script.display().to_string()]);

    // A daemon that accepts and never answers.
    let dir = tempfile::tempdir().unwrap();
    let deaf = dir.path().join("deaf.sock");
    let _listener = UnixListener::bind(&deaf).unwrap();
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.env("RINGWAY_CTL", &deaf).args(["complete", "--line", "ringway dev del "]);
    let done = finish(command);
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "", ""));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    // Without one, what needs none is there.
    assert_eq!(completed(&dir.path().join("none"), "ringway dev de"), ["del"]);
    assert!(completed(&dir.path().join("none"), "ringway dev del ").is_empty());
}

/// What zsh offers at the end of a line, and the line as a key of Tab leaves it. The script is found as it is when it is
/// installed, by its name in a folder of completions.
fn typed_to_zsh(daemon: &Daemon, ctl: &Path, line: &str) -> (Vec<String>, String) {
    let folder = daemon.dir.join("zsh");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("_ringway"), daemon.run("completion zsh").good()).unwrap();
    std::fs::write(folder.join(".zshrc"), ZSHRC).unwrap();
    std::fs::write(folder.join("driver"), ZSH_DRIVER).unwrap();
    let mut command = shell("zsh", daemon, ctl);
    command.arg("-f").arg(folder.join("driver")).env("ZDOTDIR", &folder).env("TOLD", folder.join("told"));
    command.env("TERM", "vt100");
    command.arg(line);
    let said = finish(command).good();
    let mut lines: Vec<&str> = said.lines().collect();
    let left = lines.pop().and_then(|last| last.strip_prefix('=')).unwrap_or_else(|| panic!("{said}"));
    (lines.into_iter().map(str::to_owned).collect(), left.to_owned())
}

/// An interactive zsh that writes down what its completion adds, then the line behind a `=`.
const ZSHRC: &str = r#"
fpath=($ZDOTDIR $fpath)
autoload -Uz compinit
compinit -u -D
bindkey -e
LISTMAX=100000
compadd() {
    # What functions of zsh's own ask for themselves is not offered.
    if [[ " ${@[1,(i)(-|--)]} " != *-(O|A|D)\ * ]]; then
        local -a __offered
        builtin compadd -A __offered "$@"
        print -rl -- $__offered >> $TOLD
    fi
    builtin compadd "$@"
}
tab() { zle complete-word; print -r -- "=$LBUFFER" >> $TOLD }
zle -N tab
bindkey '^I' tab
zle-line-init() { print -r -- '=' >> $TOLD }
zle -N zle-line-init
"#;

/// Types its argument to a zsh on a terminal, with Tab at its end, and prints what that wrote down.
const ZSH_DRIVER: &str = r#"
zmodload zsh/zpty || exit 1
wait_for_it() {
    local -i looks=0
    local said screen
    local -a told
    until told=("${(@f)$(<$TOLD)}"); [[ $told[-1] == "="* ]]; do
        while zpty -r shell said; do screen+=$said; done
        (( ++looks > 1000 )) && { print -r -- "no answer: $screen" >&2; exit 1 }
        sleep 0.02
    done
}
: > $TOLD
zpty -b shell zsh -d -i
wait_for_it
: > $TOLD
zpty -w -n shell $1$'\t'
wait_for_it
grep -v '^$' $TOLD
zpty -d shell
"#;

#[test]
#[ignore = "needs zsh: run deploy/test"]
fn zsh_offers_what_the_daemon_knows() {
    let daemon = daemon();
    for (line, expected) in cases(&daemon) {
        comes_to(line, &set(&expected), || set(&typed_to_zsh(&daemon, &daemon.ctl(), line).0));
        // A word that is the only one is written, with a blank behind it unless more belongs to it.
        if let [word] = &expected[..] {
            let (begin, _) = line.rsplit_once(' ').unwrap();
            let blank = if word.ends_with('/') { "" } else { " " };
            let written = format!("{begin} {word}{blank}");
            comes_to(line, &written, || typed_to_zsh(&daemon, &daemon.ctl(), line).1);
        }
    }
    let file = daemon.dir.join("a-file");
    std::fs::write(&file, "").unwrap();
    let line = format!("ringway config check {}/a-f", daemon.dir.display());
    let none = daemon.dir.join("none");
    assert_eq!(typed_to_zsh(&daemon, &none, &line).1, format!("ringway config check {} ", file.display()));
    // Without a daemon, what needs none is there.
    let (offered, left) = typed_to_zsh(&daemon, &none, "ringway dev de");
    assert_eq!((&offered[..], left.as_str()), (&["del".to_owned()][..], "ringway dev del "));
    let (offered, left) = typed_to_zsh(&daemon, &none, "ringway dev del ");
    assert_eq!((&offered[..], left.as_str()), (&[][..], "ringway dev del "));
}

/// What fish offers at the end of a line.
fn typed_to_fish(daemon: &Daemon, ctl: &Path, line: &str) -> Vec<String> {
    let script = daemon.dir.join("ringway.fish");
    std::fs::write(&script, daemon.run("completion fish").good()).unwrap();
    let mut command = shell("fish", daemon, ctl);
    command.arg("--no-config").args(["-c", "source $argv[1]; complete -C $argv[2]"]).arg(&script).arg(line);
    let said = finish(command).good();
    said.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

#[test]
#[ignore = "needs fish: run deploy/test"]
fn fish_offers_what_the_daemon_knows() {
    let daemon = daemon();
    for (line, expected) in cases(&daemon) {
        comes_to(line, &set(&expected), || set(&typed_to_fish(&daemon, &daemon.ctl(), line)));
    }
    let file = daemon.dir.join("a-file");
    std::fs::write(&file, "").unwrap();
    let line = format!("ringway config check {}/a-f", daemon.dir.display());
    let none = daemon.dir.join("none");
    assert_eq!(typed_to_fish(&daemon, &none, &line), [file.display().to_string()]);
    // Without a daemon, what needs none is there.
    assert_eq!(typed_to_fish(&daemon, &none, "ringway dev de"), ["del"]);
    assert!(typed_to_fish(&daemon, &none, "ringway dev del ").is_empty());
}
