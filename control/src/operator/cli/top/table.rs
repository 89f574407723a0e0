//! Rows and columns of each pane, sorted and filtered: no terminal here.

use std::cmp::Ordering;

use crate::operator::cli::interval::or_dash;
use crate::operator::rates::{CoreRates, DeviceRates, PumpRates, QueueRates, Rates, short};

/// What is shown in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pane {
    Devices,
    Queues,
    Cores,
    Drops,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Characters; the first column has what is left.
    pub(super) width: u16,
    /// On the right, and the largest first.
    pub(super) is_number: bool,
}

const fn words(title: &'static str, width: u16) -> Column {
    Column { title, width, is_number: false }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column { title, width, is_number: true }
}

const DEVICES: [Column; 9] = [
    words("DEVICE", 15),
    words("STATE", 9),
    words("CORE", 5),
    number("RX p/s", 7),
    number("RX b/s", 7),
    number("TX p/s", 7),
    number("TX b/s", 7),
    number("DROP/s", 7),
    number("FAULTS", 6),
];
const QUEUES: [Column; 10] = [
    words("DEVICE", 15),
    number("Q", 3),
    words("TYPE", 7),
    number("PACK/s", 7),
    number("BITS/s", 7),
    number("BURST", 6),
    number("P99us", 7),
    number("CALL/s", 6),
    number("DROP/s", 6),
    number("FAULTS", 6),
];
const CORES: [Column; 9] = [
    words("CORE, PUMP", 19),
    words("STATE", 7),
    number("BUSY%", 6),
    number("SLEEP%", 6),
    number("PACK/s", 7),
    number("CYC/PK", 7),
    number("BURST", 6),
    number("WAKE/s", 6),
    number("TAKEN/s", 7),
];
const DROPS: [Column; 6] = [
    words("DEVICE", 15),
    number("Q", 3),
    words("TYPE", 7),
    words("WHAT", 28),
    number("PER SECOND", 10),
    number("IN ALL", 10),
];

/// A row's words, and what they are sorted by.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) text: String,
    number: f64,
}

impl Cell {
    fn word(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), number: 0.0 }
    }

    fn rate(number: f64) -> Cell {
        Cell { text: short(number), number }
    }

    fn maybe(number: Option<f64>) -> Cell {
        Cell { text: or_dash(number), number: number.unwrap_or(-1.0) }
    }

    fn percent(number: f64) -> Cell {
        Cell { text: format!("{number:.1}"), number }
    }

    fn count(number: u64) -> Cell {
        Cell { text: number.to_string(), number: number as f64 }
    }
}

/// A row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    /// It tells of something lost.
    pub(super) is_bad: bool,
    /// It belongs below the row of this number, a core's, or is that row.
    core: usize,
    is_pump: bool,
}

/// Rows of a pane, in order.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
}

impl Pane {
    pub(super) const ALL: [Pane; 4] = [Pane::Devices, Pane::Queues, Pane::Cores, Pane::Drops];

    pub(super) fn title(self) -> &'static str {
        match self {
            Pane::Devices => "devices",
            Pane::Queues => "queues",
            Pane::Cores => "cores and pumps",
            Pane::Drops => "drops and faults",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Pane::Devices => &DEVICES,
            Pane::Queues => &QUEUES,
            Pane::Cores => &CORES,
            Pane::Drops => &DROPS,
        }
    }

    pub(super) fn next(self) -> Pane {
        Pane::ALL[(self as usize + 1) % Pane::ALL.len()]
    }

    /// The column, and whether the largest stands first.
    pub(super) fn sorted_at_first(self) -> (usize, bool) {
        match self {
            // By what is received.
            Pane::Devices | Pane::Queues => (3, true),
            Pane::Cores => (0, false),
            Pane::Drops => (4, true),
        }
    }
}

impl Table {
    /// Names that contain the filter; of a core all its pumps, too.
    pub(super) fn of(pane: Pane, rates: &Rates, sort: (usize, bool), filter: &str) -> Table {
        let has_name = |name: &str| name.contains(filter);
        let devices = || rates.dev.0.iter().filter(|(name, _)| has_name(name));
        let mut rows: Vec<Row> = match pane {
            Pane::Devices => devices().map(|(name, device)| device_row(name, device)).collect(),
            Pane::Queues => devices()
                .flat_map(|(name, device)| device.queues.iter().map(move |queue| queue_row(name, queue)))
                .collect(),
            Pane::Cores => {
                let cores = rates.core.0.iter().enumerate();
                cores.flat_map(|(nth, (name, core))| core_rows(nth, name, core, &has_name)).collect()
            }
            Pane::Drops => devices()
                .flat_map(|(name, device)| device.queues.iter().flat_map(move |queue| lost_rows(name, queue)))
                .collect(),
        };
        let (column, largest_first) = sort;
        let is_number = pane.columns().get(column).is_some_and(|column| column.is_number);
        rows.sort_by(|a, b| {
            let own = |row: &Row| (row.core, row.is_pump);
            let by = match (a.cells.get(column), b.cells.get(column)) {
                (Some(a), Some(b)) if is_number => a.number.total_cmp(&b.number),
                (Some(a), Some(b)) => natural(&a.text, &b.text),
                _ => Ordering::Equal,
            };
            own(a).cmp(&own(b)).then(if largest_first { by.reverse() } else { by })
        });
        Table { rows }
    }
}

/// By words, and where both have a number by that: `vm2` before `vm10`.
fn natural(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (word, number) = text.split_at(digits);
        (word.to_owned(), number.parse::<u64>().ok())
    };
    parts(a).cmp(&parts(b))
}

fn row(cells: Vec<Cell>, is_bad: bool) -> Row {
    Row { cells, is_bad, core: 0, is_pump: false }
}

fn device_row(name: &str, device: &DeviceRates) -> Row {
    let mut cores = device.cores.clone();
    cores.dedup();
    let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
    let is_bad = device.drops_per_s > 0.0 || device.faults > 0;
    let cells = vec![
        Cell::word(name),
        Cell::word(&device.state),
        Cell::word(cores.join(",")),
        Cell::rate(device.rx.packets_per_s),
        Cell::rate(device.rx.bits_per_s),
        Cell::rate(device.tx.packets_per_s),
        Cell::rate(device.tx.bits_per_s),
        Cell::rate(device.drops_per_s),
        Cell::count(device.faults),
    ];
    row(cells, is_bad)
}

fn queue_row(name: &str, queue: &QueueRates) -> Row {
    let drops = queue.all_drops_per_s();
    let cells = vec![
        Cell::word(name),
        Cell::count(queue.qidx.into()),
        Cell::word(&queue.queue_type),
        Cell::rate(queue.flow.packets_per_s),
        Cell::rate(queue.flow.bits_per_s),
        Cell::maybe(queue.burst),
        Cell::maybe(queue.p99_ns.map(|ns| ns as f64 / 1000.0)),
        Cell::rate(queue.calls_per_s),
        Cell::rate(drops),
        Cell::count(queue.all_faults()),
    ];
    row(cells, drops > 0.0 || queue.all_faults() > 0)
}

fn core_rows(nth: usize, name: &str, core: &CoreRates, has_name: &impl Fn(&str) -> bool) -> Vec<Row> {
    let is_core_wanted = has_name(name);
    let pump = |pump: &PumpRates| Row {
        cells: vec![
            Cell::word(format!(" {}", pump.name)),
            Cell::word(if pump.state == "cannot sleep" { "naps" } else { pump.state }),
            Cell::percent(pump.busy_pct),
            Cell::word(""),
            Cell::rate(pump.packets_per_s),
            Cell::maybe(pump.cycles_per_packet),
            Cell::maybe(pump.burst),
            Cell::word(""),
            Cell::word(""),
        ],
        is_bad: false,
        core: nth,
        is_pump: true,
    };
    let wanted = core.pumps.iter().filter(|pump| is_core_wanted || has_name(&pump.name));
    let pumps: Vec<Row> = wanted.map(pump).collect();
    if !is_core_wanted && pumps.is_empty() {
        return pumps;
    }
    let taken = core.preemptions_per_s;
    let own = Row {
        cells: vec![
            Cell::word(format!("core {name}")),
            Cell::word(""),
            Cell::percent(core.busy_pct),
            Cell::percent(core.sleep_pct),
            Cell::rate(core.packets_per_s),
            Cell::maybe(core.cycles_per_packet),
            Cell::maybe(core.burst),
            Cell::rate(core.wakeups_per_s),
            Cell::maybe(taken),
        ],
        is_bad: core.busy_pct > AT_LIMIT_PCT,
        core: nth,
        is_pump: false,
    };
    [vec![own], pumps].concat()
}

/// A row for each reason.
fn lost_rows(name: &str, queue: &QueueRates) -> Vec<Row> {
    let lost = |what: String, per_second: Option<f64>, all: u64| {
        let cells = vec![
            Cell::word(name),
            Cell::count(queue.qidx.into()),
            Cell::word(&queue.queue_type),
            Cell::word(what),
            Cell::maybe(per_second),
            Cell::count(all),
        ];
        row(cells, per_second.is_none_or(|rate| rate > 0.0))
    };
    let drops = queue.drops_per_s.iter();
    let drops =
        drops.map(|(reason, rate)| lost(format!("drop {reason}"), Some(*rate), queue.drops.of(reason)));
    let faults = queue.faults.iter().map(|(fault, count)| lost(format!("fault {fault}"), None, count));
    drops.chain(faults).collect()
}

/// A core that works for more of its time is at its limit.
const AT_LIMIT_PCT: f64 = 95.0;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operator::api::{Counts, Named};
    use crate::operator::rates::Flow;

    fn queue(qidx: u32, queue_type: &str, packets_per_s: f64, drops: f64) -> QueueRates {
        let flow = Flow { packets_per_s, bits_per_s: packets_per_s * 512.0 };
        let mut queue = QueueRates { qidx, queue_type: queue_type.to_owned(), flow, ..QueueRates::default() };
        if drops > 0.0 {
            queue.drops_per_s.insert("no_rx_buffer".to_owned(), drops);
            queue.drops = Counts::from_iter([("no_rx_buffer", 77)]);
        }
        queue
    }

    /// Devices `vm0` and up, the last of which has most to do, on one core.
    pub(in super::super) fn rates(devices: usize) -> Rates {
        let device = |nth: usize| {
            let packets = 1000.0 * nth as f64;
            let queues =
                vec![queue(0, "rx", packets, if nth == 1 { 5.0 } else { 0.0 }), queue(1, "tx", packets, 0.0)];
            let device = DeviceRates {
                state: "connected".to_owned(),
                cores: vec![1],
                rx: queues[0].flow,
                tx: queues[1].flow,
                drops_per_s: if nth == 1 { 5.0 } else { 0.0 },
                queues,
                ..DeviceRates::default()
            };
            (format!("vm{nth}"), device)
        };
        let pump = |name: &str, packets_per_s| PumpRates {
            name: name.to_owned(),
            state: "awake",
            packets_per_s,
            ..PumpRates::default()
        };
        let core = CoreRates {
            busy_pct: 97.5,
            pumps: vec![pump("vm0", 1.0), pump("vm1", 3.0), pump("vm2", 2.0)],
            ..CoreRates::default()
        };
        Rates {
            interval_ms: 1000,
            dev: (0..devices).map(device).collect(),
            core: Named(vec![("1".to_owned(), core.clone()), ("2".to_owned(), CoreRates::default())]),
        }
    }

    fn first_column(table: &Table) -> Vec<&str> {
        table.rows.iter().map(|row| row.cells[0].text.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_by_number_and_names_by_their_number() {
        let rates = rates(12);
        let by_rate = Table::of(Pane::Devices, &rates, (3, true), "");
        assert_eq!(first_column(&by_rate)[..3], ["vm11", "vm10", "vm9"]);
        let by_name = Table::of(Pane::Devices, &rates, (0, false), "");
        assert_eq!(first_column(&by_name)[..3], ["vm0", "vm1", "vm2"]);
        assert!(by_name.rows[1].is_bad && !by_name.rows[2].is_bad);
        let filtered = Table::of(Pane::Queues, &rates, (0, true), "vm1");
        assert_eq!(first_column(&filtered), ["vm11", "vm11", "vm10", "vm10", "vm1", "vm1"]);
    }

    #[test]
    fn pumps_stay_below_their_core_however_they_are_sorted() {
        let rates = rates(1);
        let by_packets = Table::of(Pane::Cores, &rates, (4, true), "");
        assert_eq!(first_column(&by_packets), ["core 1", " vm1", " vm2", " vm0", "core 2"]);
        assert!(by_packets.rows[0].is_bad);
        let of_one = Table::of(Pane::Cores, &rates, (0, false), "vm2");
        assert_eq!(first_column(&of_one), ["core 1", " vm2"]);
    }

    #[test]
    fn each_reason_that_something_was_lost_for_is_a_row() {
        let mut rates = rates(3);
        rates.dev.0[2].1.queues[1].faults = Counts::from_iter([("unmapped", 1)]);
        let lost = Table::of(Pane::Drops, &rates, (4, true), "");
        let rows: Vec<Vec<&str>> =
            lost.rows.iter().map(|row| row.cells.iter().map(|cell| cell.text.as_str()).collect()).collect();
        assert_eq!(
            rows,
            [
                ["vm1", "0", "rx", "drop no_rx_buffer", "5.00", "77"],
                ["vm2", "1", "tx", "fault unmapped", "-", "1"]
            ]
        );
    }

    #[test]
    fn every_row_has_a_cell_for_each_column_and_columns_fit_the_narrowest_terminal() {
        let rates = rates(2);
        for pane in Pane::ALL {
            let table = Table::of(pane, &rates, pane.sorted_at_first(), "");
            assert!(!table.rows.is_empty(), "{pane:?}");
            assert!(table.rows.iter().all(|row| row.cells.len() == pane.columns().len()), "{pane:?}");
            let width: u16 = pane.columns().iter().map(|column| column.width + 1).sum();
            assert!(width - 1 <= 80, "{pane:?}: {width}");
        }
    }
}
