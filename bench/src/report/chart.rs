//! Charts as SVG within the page: lines with whiskers from lowest to highest, and bars.
//!
//! Colours come from the page's style sheet, for light and dark; marks and dashes tell the lines apart without them.

use super::axis::{Axis, Scale, short};
use super::html::Html;
use crate::stats::Spread;

/// Lines over a common axis.
#[derive(Debug, Clone)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// What is along the bottom, with its unit.
    pub x_name: String,
    /// What is along the side, with its unit.
    pub y_name: String,
    /// How values along the bottom lie.
    pub x: Scale,
    /// How values along the side lie.
    pub y: Scale,
    /// The lines.
    pub lines: Vec<Line>,
    /// A value along the side that matters, and why.
    pub mark: Option<(f64, String)>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, Spread)>,
}

/// Bars from left to right, one below the other.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// What the bars' lengths are, with their unit.
    pub name: String,
    /// Each bar's name, length and target, if it has one.
    pub bars: Vec<(String, Spread, Option<f64>)>,
    /// A length that matters, and why.
    pub mark: Option<(f64, String)>,
}

impl Lines {
    /// Draws it; nothing if there is nothing to draw.
    pub fn draw(&self, html: &mut Html) {
        if self.lines.iter().all(|line| line.points.is_empty()) {
            return;
        }
        figure(html, &self.title, |html| {
            let (width, height) = (WIDTH, HEIGHT);
            svg(html, &self.title, width, height, |html| self.inside(html, width, height));
            if self.lines.len() > 1 {
                self.legend(html);
            }
        });
    }

    fn inside(&self, html: &mut Html, width: f64, height: f64) {
        let (left, right, top, bottom) = (LEFT, width - RIGHT, TOP, height - BOTTOM);
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x = Axis::new(self.x.clone(), points().map(|(x, _)| *x), left, right);
        let marked = self.mark.iter().map(|(at, _)| *at);
        let ends = points().flat_map(|(_, y)| [y.low, y.median, y.high]);
        let y = Axis::new(self.y.clone(), ends.chain(marked), bottom, top);
        for (at, text) in y.marks(28.0) {
            let place = y.place(at);
            line(html, "grid", left, place, right, place);
            label(html, "tick end", left - 6.0, place + 4.0, &text);
        }
        let marks = match self.x {
            Scale::Nines | Scale::Steps(_) => x.marks(44.0),
            Scale::Linear | Scale::Log => {
                let mut values: Vec<f64> = points().map(|(x, _)| *x).collect();
                values.sort_by(f64::total_cmp);
                values.dedup();
                x.marks_at(&values, 30.0)
            }
        };
        for (at, text) in marks {
            let place = x.place(at);
            line(html, "axis", place, bottom, place, bottom + 4.0);
            label(html, "tick middle", place, bottom + 18.0, &text);
        }
        line(html, "axis", left, bottom, right, bottom);
        label(html, "name middle", (left + right) / 2.0, height - 6.0, &self.x_name);
        label(html, "name", 6.0, 14.0, &self.y_name);
        if let Some((at, why)) = &self.mark {
            let place = y.place(*at);
            line(html, "mark", left, place, right, place);
            label(html, "marked end", right, place - 5.0, why);
        }
        for (number, one) in self.lines.iter().enumerate() {
            let path: Vec<String> = one
                .points
                .iter()
                .filter(|(_, spread)| spread.median.is_finite())
                .map(|(at, spread)| format!("{:.1},{:.1}", x.place(*at), y.place(spread.median)))
                .collect();
            html.shape(
                "polyline",
                &[("class", &format!("line {}", colour(number))), ("points", &path.join(" "))],
            );
            for (at, spread) in one.points.iter().filter(|(_, spread)| spread.median.is_finite()) {
                let middle = (x.place(*at), y.place(spread.median));
                if spread.high > spread.low {
                    whisker(
                        html,
                        number,
                        Upright { x: middle.0, from: y.place(spread.low), to: y.place(spread.high) },
                    );
                }
                mark(html, number, middle, &format!("{}: {} at {}", one.name, told(*spread), short(*at)));
            }
        }
    }

    fn legend(&self, html: &mut Html) {
        html.element("ul", &[("class", "legend")], |html| {
            for (number, one) in self.lines.iter().enumerate() {
                html.element("li", &[], |html| {
                    html.element(
                        "svg",
                        &[
                            ("width", "30"),
                            ("height", "12"),
                            ("viewBox", "0 0 30 12"),
                            ("aria-hidden", "true"),
                        ],
                        |html| {
                            let class = format!("line {}", colour(number));
                            html.shape("polyline", &[("class", &class), ("points", "0,6 30,6")]);
                            mark(html, number, (15.0, 6.0), "");
                        },
                    );
                    html.text(" ");
                    html.text(&one.name);
                });
            }
        });
    }
}

impl Bars {
    /// Draws it; nothing if there is nothing to draw.
    pub fn draw(&self, html: &mut Html) {
        if self.bars.is_empty() {
            return;
        }
        let height = TOP + self.bars.len() as f64 * BAR + BOTTOM;
        figure(html, &self.title, |html| {
            svg(html, &self.title, WIDTH, height, |html| self.inside(html, height));
        });
    }

    fn inside(&self, html: &mut Html, height: f64) {
        let longest =
            self.bars.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0).min(NAME_MOST);
        let (left, right) = (longest as f64 * CHARACTER + 14.0, WIDTH - 64.0);
        let (top, bottom) = (TOP, height - BOTTOM);
        let lengths = self.bars.iter().flat_map(|(_, spread, target)| {
            [Some(spread.median), Some(spread.high), *target].into_iter().flatten()
        });
        let marked = self.mark.iter().map(|(at, _)| *at);
        let x = Axis::new(Scale::Linear, lengths.chain(marked), left, right);
        for (at, text) in x.marks(56.0) {
            let place = x.place(at);
            line(html, "grid", place, top, place, bottom);
            label(html, "tick middle", place, bottom + 16.0, &text);
        }
        label(html, "name middle", (left + right) / 2.0, height - 6.0, &self.name);
        for (number, (name, spread, target)) in self.bars.iter().enumerate() {
            let (above, middle) = (top + number as f64 * BAR + 5.0, top + (number as f64 + 0.5) * BAR);
            let (width, thickness) = (x.place(spread.median) - left, BAR - 10.0);
            let missed = target.is_some_and(|target| spread.median < target);
            html.element(
                "rect",
                &[
                    ("class", if missed { "bar missed" } else { "bar" }),
                    ("x", &format!("{left:.1}")),
                    ("y", &format!("{above:.1}")),
                    ("width", &format!("{:.1}", width.max(0.0))),
                    ("height", &format!("{thickness:.1}")),
                ],
                |html| html.leaf("title", &[], &format!("{name}: {}", told(*spread))),
            );
            if spread.high > spread.low {
                let (low, high) = (x.place(spread.low), x.place(spread.high));
                line(html, "whisker", low, middle, high, middle);
                line(html, "whisker", low, middle - 4.0, low, middle + 4.0);
                line(html, "whisker", high, middle - 4.0, high, middle + 4.0);
            }
            if let Some(target) = target {
                let place = x.place(*target);
                line(html, "target", place, above - 3.0, place, above + thickness + 3.0);
            }
            label(html, "tick end", left - 8.0, middle + 4.0, &cut(name, NAME_MOST));
            label(html, "value", WIDTH - 58.0, middle + 4.0, &short(spread.median));
        }
        line(html, "axis", left, top, left, bottom);
        if let Some((at, why)) = &self.mark {
            let place = x.place(*at);
            line(html, "mark", place, top - 4.0, place, bottom);
            label(html, "marked middle", place, top - 8.0, why);
        }
    }
}

/// A spread in words.
pub fn told(spread: Spread) -> String {
    if spread.low == spread.high {
        return short(spread.median);
    }
    format!("{} ({} to {})", short(spread.median), short(spread.low), short(spread.high))
}

fn figure(html: &mut Html, title: &str, inside: impl FnOnce(&mut Html)) {
    html.element("figure", &[], |html| {
        html.leaf("figcaption", &[], title);
        inside(html);
    });
}

fn svg(html: &mut Html, title: &str, width: f64, height: f64, inside: impl FnOnce(&mut Html)) {
    let view = format!("0 0 {width} {height}");
    html.element(
        "svg",
        &[("class", "chart"), ("viewBox", &view), ("role", "img"), ("aria-label", title)],
        inside,
    );
}

fn line(html: &mut Html, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
    let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(|place| format!("{place:.1}"));
    html.shape("line", &[("class", class), ("x1", &x1), ("y1", &y1), ("x2", &x2), ("y2", &y2)]);
}

fn label(html: &mut Html, class: &str, x: f64, y: f64, text: &str) {
    html.leaf("text", &[("class", class), ("x", &format!("{x:.1}")), ("y", &format!("{y:.1}"))], text);
}

/// From lowest to highest.
struct Upright {
    x: f64,
    from: f64,
    to: f64,
}

fn whisker(html: &mut Html, number: usize, Upright { x, from, to }: Upright) {
    let class = format!("whisker {}", colour(number));
    line(html, &class, x, from, x, to);
    line(html, &class, x - 3.0, from, x + 3.0, from);
    line(html, &class, x - 3.0, to, x + 3.0, to);
}

/// A point's mark: its form goes by the line's number.
fn mark(html: &mut Html, number: usize, (x, y): (f64, f64), title: &str) {
    let corners: &[(f64, f64)] = match number % 4 {
        0 => &[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
        1 => &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
        2 => &[(0.0, -4.5), (4.5, 3.5), (-4.5, 3.5)],
        _ => &[(-4.5, -3.5), (4.5, -3.5), (0.0, 4.5)],
    };
    let points: Vec<String> =
        corners.iter().map(|(right, down)| format!("{:.1},{:.1}", x + right, y + down)).collect();
    let class = format!("point {}", colour(number));
    html.element("polygon", &[("class", &class), ("points", &points.join(" "))], |html| {
        if !title.is_empty() {
            html.leaf("title", &[], title);
        }
    });
}

/// Six colours; then the same again, dashed.
fn colour(number: usize) -> String {
    let dashed = if (number / COLOURS) % 2 == 1 { " dashed" } else { "" };
    format!("c{}{dashed}", number % COLOURS)
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

const COLOURS: usize = 6;
const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 46.0;
/// A bar with the room around it.
const BAR: f64 = 28.0;
/// A character of a bar's name, about.
const CHARACTER: f64 = 6.6;
/// Characters of a bar's name that are shown.
const NAME_MOST: usize = 44;

#[cfg(test)]
mod tests {
    use super::*;

    fn exactly(value: f64) -> Spread {
        Spread { median: value, low: value, high: value }
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let bars = Bars {
            title: "t".into(),
            name: "x".into(),
            bars: vec![("a".into(), exactly(1.0), Some(1.5)), ("b".into(), exactly(2.0), Some(1.5))],
            mark: None,
        };
        let mut html = Html::default();
        bars.draw(&mut html);
        let text = html.into_string();
        let widths: Vec<f64> = text
            .split("<rect ")
            .skip(1)
            .filter_map(|rect| rect.split_once(" width=\"")?.1.split_once('"')?.0.parse().ok())
            .collect();
        assert_eq!(widths.len(), 2);
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        // Only the first misses its target.
        assert_eq!(text.matches("bar missed").count(), 1);
    }

    #[test]
    fn a_line_has_its_points_whiskers_and_a_legend_with_others() {
        let spread = Spread { median: 2.0, low: 1.0, high: 3.0 };
        let line =
            |name: &str| Line { name: name.into(), points: vec![(64.0, spread), (1518.0, exactly(1.0))] };
        let chart = Lines {
            title: "t".into(),
            x_name: "x".into(),
            y_name: "y".into(),
            x: Scale::Log,
            y: Scale::Linear,
            lines: vec![line("<one>"), line("two")],
            mark: None,
        };
        let mut html = Html::default();
        chart.draw(&mut html);
        let text = html.into_string();
        assert_eq!(text.matches("<polyline").count(), 4, "two lines, two in the legend");
        assert_eq!(text.matches("class=\"whisker c0\"").count(), 3);
        assert!(text.contains("&lt;one&gt;: 2 (1 to 3) at 64") && !text.contains("<one>"));
    }

    #[test]
    fn a_chart_of_nothing_is_not_drawn() {
        let mut html = Html::default();
        Bars { title: "t".into(), name: "x".into(), bars: Vec::new(), mark: None }.draw(&mut html);
        assert!(html.is_empty());
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
