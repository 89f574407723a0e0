//! Markup that is escaped by construction: names of elements and attributes are the program's own, and every text and
//! every attribute's value goes through one escape. There is no way to put in anything raw but the style sheet.

/// A piece of HTML or SVG.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html(String);

/// Attributes of an element.
pub type Attributes<'a> = [(&'static str, &'a str)];

impl Html {
    /// A whole document's beginning.
    pub fn document() -> Html {
        Html("<!DOCTYPE html>\n".to_owned())
    }

    /// Text.
    pub fn text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Not allowed in a document, or meant to turn the text's direction around.
                '\u{0}'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' => self.0.push('\u{fffd}'),
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('\u{fffd}'),
                other => self.0.push(other),
            }
        }
    }

    /// An element with something inside.
    pub fn element(
        &mut self,
        tag: &'static str,
        attributes: &Attributes<'_>,
        inside: impl FnOnce(&mut Html),
    ) {
        self.open(tag, attributes, ">");
        inside(self);
        self.0.push_str("</");
        self.0.push_str(tag);
        self.0.push('>');
        if BLOCKS.contains(&tag) {
            self.0.push('\n');
        }
    }

    /// An element with text inside.
    pub fn leaf(&mut self, tag: &'static str, attributes: &Attributes<'_>, text: &str) {
        self.element(tag, attributes, |html| html.text(text));
    }

    /// An HTML element without end, as `meta`.
    pub fn void(&mut self, tag: &'static str, attributes: &Attributes<'_>) {
        self.open(tag, attributes, ">\n");
    }

    /// An SVG element with nothing inside.
    pub fn shape(&mut self, tag: &'static str, attributes: &Attributes<'_>) {
        self.open(tag, attributes, "/>");
    }

    /// The style sheet, which is a part of the program.
    pub fn style(&mut self, sheet: &'static str) {
        self.0.push_str("<style>\n");
        self.0.push_str(sheet);
        self.0.push_str("</style>\n");
    }

    /// Another piece.
    pub fn append(&mut self, other: &Html) {
        self.0.push_str(&other.0);
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The document.
    pub fn into_string(self) -> String {
        self.0
    }

    fn open(&mut self, tag: &'static str, attributes: &Attributes<'_>, end: &str) {
        self.0.push('<');
        self.0.push_str(tag);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
        self.0.push_str(end);
    }
}

/// Elements that end a line, so that the page can be read as text.
const BLOCKS: [&str; 12] =
    ["html", "head", "body", "section", "figure", "svg", "table", "tr", "p", "li", "h2", "title"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_values_are_escaped() {
        let mut html = Html::default();
        html.leaf("b", &[("title", "\"><script>")], "<i>'&");
        assert_eq!(html.into_string(), "<b title=\"&quot;&gt;&lt;script&gt;\">&lt;i&gt;&#39;&amp;</b>");
    }

    #[test]
    fn controls_and_marks_of_direction_do_not_pass() {
        let mut html = Html::default();
        html.text("a\u{0}b\u{1b}c\u{202e}d\u{2066}e\nf\tg");
        assert_eq!(html.into_string(), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e\nf\tg");
    }

    #[test]
    fn elements_nest() {
        let mut html = Html::default();
        html.element("p", &[], |html| {
            html.text("x");
            html.shape("line", &[("x1", "0")]);
        });
        assert_eq!(html.into_string(), "<p>x<line x1=\"0\"/></p>\n");
    }
}
