#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};

use proptest::prelude::*;

use super::*;

const OPTIONS: FdbOptions =
    FdbOptions { capacity: 64, ports: 4, per_port: 16, ageing: 100, seed: [0x1234_5678_9abc_def0, 42] };

fn fdb(options: FdbOptions) -> Fdb {
    Fdb::try_new(options).unwrap()
}

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x52, 0, a, b, c, d])
}

#[test]
fn hash_is_siphash_1_3_of_the_six_bytes() {
    // The standard library's hasher is SipHash-1-3 with keys of zero.
    for number in [0, 1, 0xffff_ffff, 0xdead_beef] {
        let mac = mac(number);
        let mut hasher = DefaultHasher::new();
        hasher.write(&mac.0);
        assert_eq!(hash([0, 0], mac.into()), hasher.finish());
    }
}

#[test]
fn address_seen_is_found_on_its_port_until_it_ages() {
    let mut fdb = fdb(OPTIONS);
    assert_eq!(fdb.learn(mac(1), 3, 1000), Learned::New);
    assert_eq!(fdb.find(mac(1), 1099), Some(3));
    assert_eq!(fdb.find(mac(1), 1100), None);
    assert_eq!(fdb.find(mac(2), 1000), None);
    assert_eq!(fdb.learn(mac(1), 3, 1050), Learned::Known);
    assert_eq!(fdb.find(mac(1), 1149), Some(3));
    assert_eq!(fdb.entries(1149).collect::<Vec<_>>(), [Entry { mac: mac(1), vid: 0, port: 3, age: 99 }]);
    assert_eq!(fdb.learn(mac(1), 3, 1150), Learned::New);
    assert_eq!(fdb.len(1150), 1);
}

#[test]
fn address_seen_on_another_port_moves_and_frees_its_place_on_the_old_one() {
    let mut fdb = fdb(FdbOptions { per_port: 1, ..OPTIONS });
    assert_eq!(fdb.learn(mac(1), 0, 0), Learned::New);
    assert_eq!(fdb.learn(mac(1), 1, 1), Learned::Moved);
    assert_eq!(fdb.find(mac(1), 2), Some(1));
    assert_eq!(fdb.learn(mac(2), 0, 2), Learned::New);
    assert_eq!(fdb.learn(mac(2), 1, 3), Learned::PortFull);
    assert_eq!(fdb.find(mac(2), 3), Some(0));
    assert_eq!(fdb.len(3), 2);
}

#[test]
fn address_is_known_in_each_vlan_by_itself() {
    let mut fdb = fdb(OPTIONS);
    let of = |vid| Address::of(mac(1), vid);
    assert_eq!(fdb.learn(of(100), 0, 0), Learned::New);
    assert_eq!(fdb.learn(of(200), 1, 1), Learned::New);
    // Whoever claims it in another VLAN moves it in none but that.
    assert_eq!(fdb.learn(of(300), 2, 2), Learned::New);
    assert_eq!(fdb.learn(of(300), 3, 2), Learned::Moved);
    let found = [100, 200, 300, 0, 4094].map(|vid| fdb.find(of(vid), 3));
    assert_eq!(found, [Some(0), Some(1), Some(3), None, None]);
    fdb.forget_port(1);
    let mut left: Vec<_> = fdb.entries(3).map(|entry| (entry.mac, entry.vid, entry.port)).collect();
    left.sort_unstable();
    assert_eq!(left, [(mac(1), 100, 0), (mac(1), 300, 3)]);
    // Each counts.
    let learned = (1..=17).map(|vid| fdb.learn(of(vid), 1, 3));
    assert_eq!(learned.filter(|learned| *learned == Learned::New).count(), OPTIONS.per_port as usize);
}

#[test]
fn group_and_zero_addresses_are_not_learned() {
    let mut fdb = fdb(OPTIONS);
    for bytes in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [0; 6]] {
        assert_eq!(fdb.learn(Mac(bytes), 0, 0), Learned::Invalid);
        assert_eq!(fdb.find(Mac(bytes), 0), None);
    }
    assert!(fdb.is_empty(0));
}

#[test]
fn others_than_its_own_address_are_forgotten_of_a_port_alone_in_whatever_vlan() {
    let mut fdb = fdb(OPTIONS);
    for (number, vid, port) in [(1, 0, 0), (1, 5, 0), (2, 0, 0), (3, 5, 0), (2, 5, 1), (4, 0, 1)] {
        assert_eq!(fdb.learn(Address::of(mac(number), vid), port, 0), Learned::New);
    }
    fdb.forget_others(0, mac(1));
    let mut left: Vec<_> = fdb.entries(1).map(|entry| (entry.mac, entry.vid, entry.port)).collect();
    left.sort_unstable();
    assert_eq!(left, [(mac(1), 0, 0), (mac(1), 5, 0), (mac(2), 5, 1), (mac(4), 0, 1)]);
    // What was forgotten counts for nobody.
    for number in 10..24 {
        assert_eq!(fdb.learn(mac(number), 0, 1), Learned::New, "{number}");
    }
}

#[test]
fn port_that_is_not_there_learns_nothing() {
    let mut fdb = fdb(OPTIONS);
    assert_eq!(fdb.learn(mac(1), 4, 0), Learned::PortFull);
    assert_eq!(fdb.learn(mac(1), u16::MAX, 0), Learned::PortFull);
    fdb.forget_port(u16::MAX);
    assert!(fdb.is_empty(0));
}

#[test]
fn flood_of_random_sources_evicts_no_other_port_and_keeps_none_from_learning() {
    let mut fdb = fdb(OPTIONS);
    for number in 0..8 {
        assert_eq!(fdb.learn(mac(number), 0, 0), Learned::New);
    }
    let mut refused = 0;
    for number in 1000..101_000 {
        refused += usize::from(fdb.learn(mac(number), 1, 1) == Learned::PortFull);
    }
    assert_eq!(refused, 100_000 - 16);
    for number in 0..8 {
        assert_eq!(fdb.find(mac(number), 1), Some(0));
    }
    for number in 8..16 {
        assert_eq!(fdb.learn(mac(number), 0, 1), Learned::New);
    }
    for number in 16..32 {
        assert_eq!(fdb.learn(mac(number), 2, 1), Learned::New);
        assert_eq!(fdb.learn(mac(number + 100), 3, 1), Learned::New);
    }
    assert_eq!(fdb.len(1), 64);
}

#[test]
fn port_full_of_aged_entries_learns_again_after_a_bounded_number_of_tries() {
    let mut fdb = fdb(FdbOptions { capacity: 1024, per_port: 1024, ..OPTIONS });
    for number in 0..1024 {
        assert_eq!(fdb.learn(mac(number), 0, 0), Learned::New, "{number}");
    }
    assert_eq!(fdb.learn(mac(5000), 0, 50), Learned::PortFull);
    let tries = (0..).take_while(|_| fdb.learn(mac(5000), 0, 100) != Learned::New).count();
    assert!(tries <= 256 / SWEEP, "{tries}");
}

#[test]
fn table_at_its_capacity_learns_from_no_port() {
    let mut fdb = fdb(FdbOptions { capacity: 10, per_port: 10, ..OPTIONS });
    for number in 0..10 {
        assert_eq!(fdb.learn(mac(number), (number % 3) as u16, 0), Learned::New);
    }
    assert_eq!(fdb.learn(mac(10), 3, 0), Learned::Full);
    assert_eq!(fdb.learn(mac(0), 3, 0), Learned::Moved);
    fdb.forget_port(3);
    assert_eq!(fdb.learn(mac(10), 3, 0), Learned::New);
}

#[test]
fn table_fills_to_its_capacity_whatever_the_seed() {
    for seed in 0..30 {
        let mut fdb = fdb(FdbOptions { capacity: 2048, per_port: 4096, seed: [seed, !seed], ..OPTIONS });
        for number in 0..2048 {
            assert_eq!(fdb.learn(mac(number), 0, 0), Learned::New, "seed {seed}, entry {number}");
        }
    }
}

#[test]
fn capacity_zero_learns_nothing() {
    let mut fdb = fdb(FdbOptions { capacity: 0, ..OPTIONS });
    assert_eq!(fdb.learn(mac(1), 0, 0), Learned::Full);
    assert_eq!(fdb.find(mac(1), 0), None);
}

#[test]
fn ageing_of_zero_remembers_nothing_and_a_change_holds_for_what_is_there() {
    let mut fdb = fdb(OPTIONS);
    fdb.learn(mac(1), 0, 0);
    fdb.set_ageing(0);
    assert_eq!(fdb.find(mac(1), 0), None);
    fdb.set_ageing(1_000_000);
    assert_eq!(fdb.find(mac(1), 999_999), Some(0));
}

#[test]
fn clock_that_goes_back_ages_nothing() {
    let mut fdb = fdb(OPTIONS);
    fdb.learn(mac(1), 0, 1000);
    assert_eq!(fdb.find(mac(1), 0), Some(0));
    assert_eq!(fdb.learn(mac(1), 0, 0), Learned::Known);
    assert_eq!(fdb.find(mac(1), 1099), Some(0));
}

#[derive(Debug, Clone)]
enum Op {
    Learn(u32, u16),
    Find(u32),
    Forget(u16),
    Pass(u64),
    Ageing(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..40u32, 0..5u16).prop_map(|(number, port)| Op::Learn(number, port)),
        4 => (0..40u32).prop_map(Op::Find),
        1 => (0..5u16).prop_map(Op::Forget),
        3 => (0..60u64).prop_map(Op::Pass),
        1 => (0..200u64).prop_map(Op::Ageing),
    ]
}

/// The rules of the module's head, on a map.
struct Oracle {
    entries: HashMap<Mac, (u16, u64)>,
    options: FdbOptions,
}

impl Oracle {
    fn age(&mut self, now: u64) {
        let ageing = self.options.ageing;
        self.entries.retain(|_, (_, seen)| now - *seen < ageing);
    }

    fn learn(&mut self, mac: Mac, port: u16, now: u64) -> Learned {
        let held = self.entries.values().filter(|(on, _)| *on == port).count();
        let old = self.entries.get(&mac).map(|(on, _)| *on);
        let learned = match old {
            Some(on) if on == port => Learned::Known,
            _ if port >= self.options.ports || held >= self.options.per_port as usize => Learned::PortFull,
            Some(_) => Learned::Moved,
            None if self.entries.len() >= self.options.capacity as usize => Learned::Full,
            None => Learned::New,
        };
        if matches!(learned, Learned::Known | Learned::Moved | Learned::New) {
            self.entries.insert(mac, (port, now));
        }
        learned
    }
}

proptest! {
    /// With everything swept before each step the rules hold exactly.
    #[test]
    fn any_sequence_does_what_the_rules_say_on_a_map(
        ops in prop::collection::vec(op(), 0..300), seed: [u64; 2], capacity in 0..30u32, per_port in 0..12u32,
    ) {
        let options = FdbOptions { capacity, per_port, seed, ..OPTIONS };
        let (mut fdb, mut oracle) = (fdb(options), Oracle { entries: HashMap::new(), options });
        let mut now = 0;
        for op in ops {
            fdb.sweep(now, usize::MAX);
            oracle.age(now);
            match op {
                Op::Learn(number, port) => {
                    prop_assert_eq!(fdb.learn(mac(number), port, now), oracle.learn(mac(number), port, now));
                }
                Op::Find(number) => {
                    let wanted = oracle.entries.get(&mac(number)).map(|(port, _)| *port);
                    prop_assert_eq!(fdb.find(mac(number), now), wanted);
                }
                Op::Forget(port) => {
                    fdb.forget_port(port);
                    oracle.entries.retain(|_, (on, _)| *on != port);
                }
                Op::Pass(cycles) => now += cycles,
                Op::Ageing(ageing) => {
                    fdb.set_ageing(ageing);
                    oracle.options.ageing = ageing;
                }
            }
            oracle.age(now);
            let found: HashMap<_, _> =
                fdb.entries(now).map(|entry| (entry.mac, (entry.port, now - entry.age))).collect();
            prop_assert_eq!(&found, &oracle.entries);
            prop_assert_eq!(fdb.len(now), found.len());
            prop_assert_eq!(fdb.is_empty(now), found.is_empty());
        }
    }

    /// Without help, aged entries may hold a place for a while, and nothing else differs.
    #[test]
    fn any_sequence_left_to_its_own_sweeping_holds_the_bounds(
        ops in prop::collection::vec(op(), 0..300), seed: [u64; 2], capacity in 0..30u32, per_port in 0..12u32,
    ) {
        let options = FdbOptions { capacity, per_port, seed, ..OPTIONS };
        let mut fdb = fdb(options);
        let mut now = 0;
        for op in ops {
            let before: HashMap<_, _> = fdb.entries(now).map(|entry| (entry.mac, entry.port)).collect();
            match op {
                Op::Learn(number, port) => {
                    let learned = fdb.learn(mac(number), port, now);
                    let old = before.get(&mac(number)).copied();
                    match learned {
                        Learned::Known => prop_assert_eq!(old, Some(port)),
                        Learned::Moved => prop_assert!(old.is_some_and(|old| old != port)),
                        Learned::New | Learned::Full => prop_assert_eq!(old, None),
                        Learned::PortFull => prop_assert_ne!(old, Some(port)),
                        Learned::Invalid => prop_assert!(false),
                    }
                    if fdb.ageing > 0 && matches!(learned, Learned::Known | Learned::New | Learned::Moved) {
                        prop_assert_eq!(fdb.find(mac(number), now), Some(port));
                    }
                    for (other, on) in before.iter().filter(|(other, _)| **other != mac(number)) {
                        prop_assert_eq!(fdb.find(*other, now), Some(*on));
                    }
                }
                Op::Find(number) => {
                    prop_assert_eq!(fdb.find(mac(number), now), before.get(&mac(number)).copied());
                }
                Op::Forget(port) => fdb.forget_port(port),
                Op::Pass(cycles) => now += cycles,
                // Not longer than before: what was swept does not come back.
                Op::Ageing(ageing) => fdb.set_ageing(ageing.min(fdb.ageing)),
            }
            let addresses: HashSet<_> = fdb.entries(now).map(|entry| entry.mac).collect();
            prop_assert_eq!(addresses.len(), fdb.len(now));
            prop_assert!(fdb.total <= capacity && fdb.held.iter().all(|&held| held <= per_port));
            prop_assert_eq!(fdb.held.iter().sum::<u32>(), fdb.total);
        }
    }
}
