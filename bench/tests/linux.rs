//! A Linux guest as the load of a comparison: its frames are accounted for, through Ringway and through the peer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::process::Command;

use serde_json::Value;

fn compared(words: &str) -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "ringway-control", "--bins"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let output =
        Command::new(env!("CARGO_BIN_EXE_ringway-bench")).args(words.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap()
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn every_frame_of_a_linux_guest_is_accounted_for() {
    for (words, ways) in [
        ("-j compare net --driver linux --ring split --driver-frames 500", 1),
        ("-j compare link --driver linux --ring packed --size 1514 --driver-frames 500", 2),
    ] {
        let told = compared(words);
        assert!(told["shape"]["reading"].as_str().unwrap().contains("nothing of speed"), "{told}");
        for side in ["ours", "peer"] {
            let accounts = told["shape"][side]["ways"].as_array().unwrap();
            assert_eq!(accounts.len(), ways, "{told}");
            for account in accounts {
                assert_eq!(
                    (&account["sent"], &account["received"]),
                    (&Value::from(500), &Value::from(500)),
                    "{told}"
                );
                assert_eq!(
                    (&account["lost"], &account["duplicated"]),
                    (&Value::from(0), &Value::from(0)),
                    "{told}"
                );
                let corrupt = &account["corrupt"];
                assert!(corrupt.is_null() == (ways == 2) && corrupt.as_u64().unwrap_or(0) == 0, "{told}");
            }
        }
    }
}
