//! What is on the screen: a head of two lines, what is to be known, rows, and the keys.
//!
//! It tells nothing by colour alone, and fits 80 columns and 24 lines.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::table::Column;
use super::view::View;
use crate::operator::cli::status::span;
use crate::operator::rates::{Rates, short};

const KEYS: &str = "d devices u queues c cores x drops s/S sort r turn / filter space pause +- q end";

/// Draws what is to be seen.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(1),
    ]);
    let [head, sums, notice, body, keys] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(head_line(view)), head);
    frame.render_widget(Paragraph::new(view.rates.as_ref().map(sums_line).unwrap_or_default()), sums);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(notice_line(view)).style(bold), notice);
    frame.render_widget(Paragraph::new(KEYS), keys);

    let table = view.table();
    view.page = usize::from(body.height.saturating_sub(1)).max(1);
    view.first = view.first.min(table.rows.len().saturating_sub(view.page));
    let columns = view.pane.columns();
    let bad = if view.has_colours { bold.fg(Color::Red) } else { bold };
    let rows = table.rows.iter().skip(view.first).take(view.page).map(|row| {
        let cells = row.cells.iter().zip(columns).map(|(cell, column)| placed(&cell.text, column));
        Row::new(cells).style(if row.is_bad { bad } else { Style::new() })
    });
    let (sorted, largest_first) = view.sort();
    let titles = columns.iter().enumerate().map(|(nth, column)| {
        let mark = match (nth == sorted, largest_first) {
            (false, _) => "",
            (true, true) => "v",
            (true, false) => "^",
        };
        placed(&format!("{mark}{}", column.title), column)
    });
    let widths = columns.iter().enumerate().map(|(nth, column)| match nth {
        0 => Constraint::Min(column.width),
        _ => Constraint::Length(column.width),
    });
    let header = Row::new(titles).style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_widget(Table::new(rows, widths).header(header).column_spacing(1), body);
}

fn placed(text: &str, column: &Column) -> Cell<'static> {
    let line = Line::from(text.to_owned());
    let side = if column.is_number { Alignment::Right } else { Alignment::Left };
    Cell::new(Text::from(line.alignment(side)))
}

fn head_line(view: &View) -> String {
    let mut line = format!("ringway top: {}", view.pane.title());
    if view.up_ns > 0 {
        line += &format!(", ringwayd up {}", span(view.up_ns / 1_000_000));
    }
    line += &format!(", every {} s", view.every.as_secs_f64());
    if !view.filter.is_empty() && !view.is_typing {
        line += &format!(", filter `{}`", view.filter);
    }
    if view.is_paused {
        line += ", PAUSED";
    }
    line
}

fn notice_line(view: &View) -> String {
    match &view.notice {
        _ if view.is_typing => format!("filter: {}_ (enter: done, escape: none)", view.filter),
        Some(notice) => notice.clone(),
        None => String::new(),
    }
}

fn sums_line(rates: &Rates) -> String {
    let devices = || rates.dev.0.iter().map(|(_, device)| device);
    let sum = |of: fn(&crate::operator::rates::DeviceRates) -> f64| short(devices().map(of).sum());
    let connected = devices().filter(|device| device.state == "connected").count();
    let busy: f64 = rates.core.0.iter().map(|(_, core)| core.busy_pct).sum();
    format!(
        "{connected}/{} up; cores {:.0}%; drop {}/s; rx {} p/s {} b/s; tx {} p/s {} b/s",
        rates.dev.0.len(),
        busy / rates.core.0.len().max(1) as f64,
        sum(|device| device.drops_per_s),
        sum(|device| device.rx.packets_per_s),
        sum(|device| device.rx.bits_per_s),
        sum(|device| device.tx.packets_per_s),
        sum(|device| device.tx.bits_per_s),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::super::table::tests::rates;
    use super::super::{Look, View};
    use super::*;

    fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn view_of(devices: usize) -> View {
        let mut view = View::new(Duration::from_secs(1), false);
        let rates = Box::new(rates(devices));
        view.take(Look::Rates { instance: "i".to_owned(), up_ns: 61_000_000_000, rates });
        view
    }

    #[test]
    fn all_columns_and_keys_are_there_on_80_columns_and_24_lines() {
        let mut view = view_of(40);
        let lines = screen(&mut view, 80, 24);
        assert_eq!(lines[0], "ringway top: devices, ringwayd up 1 min 1 s, every 1 s");
        assert_eq!(lines[1], "40/40 up; cores 49%; drop 5.00/s; rx 780k p/s 399M b/s; tx 780k p/s 399M b/s",);
        assert_eq!(
            lines[3],
            "DEVICE            STATE     CORE  vRX p/s  RX b/s  TX p/s  TX b/s  DROP/s FAULTS"
        );
        assert_eq!(
            lines[4],
            "vm39              connected 1       39.0k   20.0M   39.0k   20.0M       0      0"
        );
        assert_eq!((lines[22].split(' ').next(), lines[23].as_str()), (Some("vm21"), KEYS));
        assert!(KEYS.len() <= 80);
        // The last page holds no empty line.
        view.key(KeyCode::End.into());
        assert!(screen(&mut view, 80, 24)[22].starts_with("vm0 "));
        view.key(KeyCode::PageUp.into());
        assert!(screen(&mut view, 80, 24)[4].starts_with("vm37"), "{:?}", screen(&mut view, 80, 24));
    }

    #[test]
    fn any_size_is_drawn() {
        let mut view = view_of(3);
        for (width, height) in [(1, 1), (10, 3), (20, 5), (300, 100)] {
            for pane in "ducx".chars() {
                view.key(KeyCode::Char(pane).into());
                screen(&mut view, width, height);
            }
        }
    }

    #[test]
    fn nothing_is_coloured_where_colours_are_not_wanted() {
        let mut view = view_of(3);
        for has_colours in [false, true] {
            view.has_colours = has_colours;
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &mut view)).unwrap();
            let cells = terminal.backend().buffer().content();
            let is_coloured = cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
            assert_eq!(is_coloured, has_colours);
            assert!(
                cells.iter().any(|cell| cell.modifier.contains(Modifier::BOLD)),
                "what is lost stands out"
            );
        }
    }
}
