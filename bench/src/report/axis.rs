//! Where a value is drawn, and where an axis has its marks.

/// How values lie on an axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// In proportion, from 0.
    Linear,
    /// Equal factors, equal distances.
    Log,
    /// Percentiles as shares from 0 to 1: each nine more is as far again.
    Nines,
    /// Each of these values one step.
    Steps(Vec<f64>),
}

/// An axis from one end of the drawing to the other.
#[derive(Debug, Clone)]
pub struct Axis {
    scale: Scale,
    /// The values at the ends.
    low: f64,
    high: f64,
    /// The ends in the drawing.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that shows all these values.
    pub fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        match &scale {
            Scale::Linear => (low, high) = (0.0, if high > 0.0 { high * 1.06 } else { 1.0 }),
            Scale::Log => {
                low = low.max(f64::MIN_POSITIVE);
                high = high.max(low);
                // Some air at the ends; a flat line is in the middle.
                let air = if high / low < 2.0 { 2.0 } else { (high / low).powf(0.05) };
                (low, high) = (low / air, high * air);
            }
            Scale::Nines => (low, high) = (0.0, high.clamp(0.9, MOST_NINES)),
            Scale::Steps(steps) => (low, high) = (-0.5, steps.len().max(1) as f64 - 0.5),
        }
        Axis { scale, low, high, from, to }
    }

    /// Where a value is drawn.
    pub fn place(&self, value: f64) -> f64 {
        let (at, low, high) = (self.linear(value), self.linear(self.low), self.linear(self.high));
        let share = if high > low { ((at - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
        self.from + share * (self.to - self.from)
    }

    /// Values that have a mark, with what is written there; fewer where there is no room for all.
    pub fn marks(&self, room: f64) -> Vec<(f64, String)> {
        let marks: Vec<(f64, String)> = match &self.scale {
            Scale::Linear => {
                let most = ((self.to - self.from).abs() / room).max(1.0);
                let step = nice_step(self.high / most);
                let count = (self.high / step) as u32;
                (0..=count).map(|number| f64::from(number) * step).map(|at| (at, short(at))).collect()
            }
            Scale::Log => decades(self.low, self.high).into_iter().map(|at| (at, short(at))).collect(),
            Scale::Nines => NINES
                .into_iter()
                .filter(|(share, _)| *share <= self.high + 1e-12)
                .map(|(share, name)| (share, name.to_owned()))
                .collect(),
            Scale::Steps(steps) => steps.iter().map(|at| (*at, short(*at))).collect(),
        };
        self.with_room(marks, room)
    }

    /// Marks at these values, as far as there is room.
    pub fn marks_at(&self, values: &[f64], room: f64) -> Vec<(f64, String)> {
        self.with_room(values.iter().map(|at| (*at, short(*at))).collect(), room)
    }

    fn with_room(&self, marks: Vec<(f64, String)>, room: f64) -> Vec<(f64, String)> {
        let mut last: Option<f64> = None;
        let fits = |(at, _): &(f64, String)| {
            let place = self.place(*at);
            let free = last.is_none_or(|last| (place - last).abs() >= room);
            if free {
                last = Some(place);
            }
            free
        };
        marks.into_iter().filter(fits).collect()
    }

    fn linear(&self, value: f64) -> f64 {
        match &self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value.clamp(0.0, MOST_NINES)).log10(),
            Scale::Steps(steps) => {
                // The ends lie half a step outside.
                if value == self.low || value == self.high {
                    return value;
                }
                steps.iter().position(|step| *step == value).unwrap_or(0) as f64
            }
        }
    }
}

/// A number as short as it can be told: three digits, or all of a whole one.
pub fn short(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let size = value.abs();
    let digits = match size {
        0.0 => 0,
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => (2 - size.log10().floor() as i32).clamp(0, 9) as usize,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |text| ("-", text));
    let (whole, part) = text.split_once('.').map_or((text, ""), |(whole, part)| (whole, part));
    // In groups of three from ten thousand on.
    let grouped: String = match whole.len() {
        0..=4 => whole.to_owned(),
        count => whole
            .char_indices()
            .flat_map(|(at, digit)| {
                (at > 0 && (count - at) % 3 == 0).then_some(',').into_iter().chain([digit])
            })
            .collect(),
    };
    if part.is_empty() { format!("{sign}{grouped}") } else { format!("{sign}{grouped}.{part}") }
}

/// The least of 1, 2, 5 times a power of ten that is not below `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(f64::MIN_POSITIVE).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(power * 10.0)
}

/// Powers of ten between the bounds; 2 and 5 times them too where there are few.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let factors: &[f64] = if last - first <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all = (first..=last).flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    all.filter(|value| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(value)).collect()
}

const NINES: [(f64, &str); 6] =
    [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];

/// Beyond six nines nothing is told apart.
const MOST_NINES: f64 = 0.999_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axis_begins_at_nothing() {
        let axis = Axis::new(Scale::Linear, [5.0, 10.0].into_iter(), 100.0, 0.0);
        assert!((axis.place(0.0) - 100.0).abs() < 1e-9);
        assert!((axis.place(10.6) - 0.0).abs() < 1e-9);
        let marks: Vec<f64> = axis.marks(25.0).into_iter().map(|(at, _)| at).collect();
        assert_eq!(marks, [0.0, 5.0, 10.0]);
    }

    #[test]
    fn equal_factors_are_equally_far_on_a_log_axis() {
        let axis = Axis::new(Scale::Log, [64.0, 4096.0].into_iter(), 0.0, 60.0);
        let places = [64.0, 512.0, 4096.0].map(|value| axis.place(value));
        // A twentieth of the way is air at each end.
        let wanted = [60.0 * 0.05 / 1.1, 30.0, 60.0 * 1.05 / 1.1];
        assert!(places.iter().zip(wanted).all(|(place, wanted)| (place - wanted).abs() < 1e-9), "{places:?}");
    }

    #[test]
    fn each_nine_is_as_far_again() {
        let axis = Axis::new(Scale::Nines, [0.9999].into_iter(), 0.0, 400.0);
        let places = [0.0, 0.9, 0.99, 0.999, 0.9999].map(|value| axis.place(value).round());
        assert_eq!(places, [0.0, 100.0, 200.0, 300.0, 400.0]);
    }

    #[test]
    fn steps_are_equally_far_whatever_their_values() {
        let steps = vec![0.0, 16.0, 1000.0];
        let axis = Axis::new(Scale::Steps(steps.clone()), steps.iter().copied(), 0.0, 300.0);
        assert_eq!([0.0, 16.0, 1000.0].map(|value| axis.place(value)), [50.0, 150.0, 250.0]);
    }

    #[test]
    fn axis_of_nothing_or_one_value_still_places_it_inside() {
        let axis = Axis::new(Scale::Log, [7.0].into_iter(), 0.0, 10.0);
        assert!((axis.place(7.0) - 5.0).abs() < 1e-9);
        let axis = Axis::new(Scale::Linear, [f64::NAN, f64::INFINITY].into_iter(), 0.0, 10.0);
        assert!(axis.place(0.5).is_finite());
    }

    #[test]
    fn marks_without_room_are_left_out() {
        let axis = Axis::new(Scale::Log, [1.0, 1000.0].into_iter(), 0.0, 300.0);
        assert_eq!(axis.marks_at(&[1.0, 1.1, 10.0, 1000.0], 50.0).len(), 3);
    }

    #[test]
    fn numbers_are_told_shortly() {
        let told = [0.0, 0.004_567, 0.5, 1.234, 12.0, 15.96, 1234.5, 1_234_567.0, -3.0].map(short);
        assert_eq!(told, ["0", "0.00457", "0.5", "1.23", "12", "16", "1234", "1,234,567", "-3"]);
        assert_eq!(short(f64::NAN), "-");
    }
}
