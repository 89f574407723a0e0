//! `why NAME`, asked for and told. What keeps packets from a device is the daemon's to say: `operator::why`.

use std::time::Duration;

use crate::fault::{Fault, Kind};
use crate::operator::api::{Look, Named, Why, WhyShow};
use crate::operator::client::Client;

/// Looks at devices twice, a moment apart. Of several, one that is removed meanwhile is left out.
///
/// # Errors
/// The daemon does not answer, or does not know the method, or there is no such device.
pub(super) fn ask(client: &mut Client, names: &[&str]) -> Result<WhyShow, Fault> {
    let mut look = |name: &str, before: Option<Look>| -> Result<Option<WhyShow>, Fault> {
        match client.call("dev.why", &Why { name: name.to_owned(), before }) {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.kind == Kind::NotFound && names.len() > 1 => Ok(None),
            // There is nothing wrong with the request.
            Err(fault) if fault.kind == Kind::Usage => Err(fault.hint(OTHER_VERSION)),
            Err(fault) => Err(fault),
        }
    };
    let mut answers = Vec::with_capacity(names.len());
    for name in names {
        answers.extend(look(name, None)?.map(|first| (*name, first)));
    }
    if answers.iter().any(|(_, first)| first.look.is_some()) {
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let mut why = Vec::with_capacity(answers.len());
    for (name, first) in answers {
        let last = match first.look {
            Some(before) => look(name, Some(before))?,
            None => Some(first),
        };
        why.extend(last.into_iter().flat_map(|last| last.why.0));
    }
    Ok(WhyShow { why: Named(why), look: None })
}

/// The text of it.
pub(super) fn text(shown: &WhyShow) -> String {
    let mut text = String::new();
    for (name, causes) in &shown.why.0 {
        for (nth, cause) in causes.iter().enumerate() {
            let head = if nth == 0 { format!("{name}: ") } else { "  also: ".to_owned() };
            text.push_str(&format!("{head}{}\n", cause.says));
            if let Some(cure) = &cause.cure {
                text.push_str(&format!("  try: {cure}\n"));
            }
        }
    }
    text
}

/// Between two looks: long enough for a second's rates to show.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// What to do about a daemon that does not understand what is asked.
const OTHER_VERSION: &str = "ringwayd is of another version than ringway (ringway hello): restart it as the installed one, when the guests can spare it";

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::*;

    /// Asks a daemon that gives these answers, one after another; with what it was asked for.
    fn asked(names: &[&str], answers: Vec<Value>) -> (Result<WhyShow, Fault>, Vec<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            let mut asked = Vec::new();
            for mut answer in answers {
                let request: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                answer["jsonrpc"] = json!("2.0");
                answer["id"] = request["id"].clone();
                (&stream).write_all(format!("{answer}\n").as_bytes()).unwrap();
                asked.push(request["params"].clone());
            }
            asked
        });
        let mut client = Client::connect(&path, Duration::from_secs(5)).unwrap();
        let said = ask(&mut client, names);
        (said, daemon.join().unwrap())
    }

    fn answer(name: &str, cause: &str, look: Option<Look>) -> Value {
        let mut result = json!({ "why": { name: [{ "cause": cause, "says": "so" }] } });
        if let Some(look) = look {
            result["look"] = serde_json::to_value(look).unwrap();
        }
        json!({ "result": result })
    }

    fn refusal(kind: &str, message: &str) -> Value {
        json!({ "error": { "code": -32601, "message": message, "data": { "kind": kind, "retryable": false } } })
    }

    #[test]
    fn second_answer_stands_and_is_asked_for_with_the_look_of_the_first() {
        let look = Look { id: 7, ..Look::default() };
        let answers = vec![
            answer("a", "none", Some(look.clone())),
            answer("b", "not_made", None),
            answer("c", "idle", Some(Look::default())),
            answer("a", "rate", Some(Look::default())),
            refusal("not_found", "no device c"),
        ];
        let (said, asked) = asked(&["a", "b", "c"], answers);
        assert_eq!(text(&said.unwrap()), "a: so\nb: so\n");
        assert_eq!(asked[3], json!({ "name": "a", "before": look }));
        assert_eq!(asked[1], json!({ "name": "b" }));
    }

    #[test]
    fn device_that_is_gone_and_daemon_without_the_method_are_errors() {
        let (said, _) = asked(&["a"], vec![refusal("not_found", "no device a")]);
        assert_eq!(said.unwrap_err().kind, Kind::NotFound);
        let (said, _) = asked(&["a"], vec![refusal("usage", "there is no method `dev.why`")]);
        let fault = said.unwrap_err();
        assert!(fault.message.contains("dev.why"), "{fault:?}");
        assert_eq!(fault.hint.as_deref(), Some(OTHER_VERSION));
    }
}
