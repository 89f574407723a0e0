//! `deploy/lab/run`: boots a machine with emulated network hardware and plays a scenario on it, or gives a shell inside.

use std::process::ExitCode;

use ringway_lab::error::Result;
use ringway_lab::hardware::scenarios::{self, Scenario};
use ringway_lab::hardware::{Machine, Model};
use ringway_lab::lab::Lab;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] | ["-h" | "--help"] => {
            list();
            return ExitCode::SUCCESS;
        }
        ["shell"] => shell(Model::Function),
        ["shell", "virtio-vf"] => shell(Model::VirtualFunctions),
        names => {
            let mut chosen = Vec::new();
            for name in names {
                let Some(scenario) = scenarios::find(name) else { return unknown(name) };
                chosen.push(scenario);
            }
            play(&chosen)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("deploy/lab/run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!(
        "deploy/lab/run SCENARIO...        boots a machine for each kind that is needed, and plays some of:"
    );
    for scenario in scenarios::ALL {
        println!("    {:<30}{}", scenario.name, scenario.proves);
    }
    println!(
        "deploy/lab/run shell [virtio-vf]  a shell inside; with a virtio function that has virtual functions"
    );
}

fn unknown(word: &str) -> ExitCode {
    eprintln!("deploy/lab/run: nothing is called {word}: without words it lists the scenarios");
    ExitCode::from(2)
}

fn play(chosen: &[&Scenario]) -> Result<()> {
    let mut left = chosen.to_vec();
    while let Some(first) = left.first().copied() {
        let (together, others) = left.iter().partition(|scenario| scenario.model == first.model);
        let together: Vec<&Scenario> = together;
        Lab::attempt(&format!("lab-{}", first.name), |lab| scenarios::play(lab, first.model, &together))?;
        left = others;
    }
    Ok(())
}

fn shell(model: Model) -> Result<()> {
    Lab::attempt("lab-shell", |lab| {
        let mut machine = Machine::boot(lab, model)?;
        lab.say("ringwayd, ringway, dpdk-testpmd, ip and busybox are there; `exit` ends the machine");
        machine.shell()?;
        machine.power_off()
    })
}
