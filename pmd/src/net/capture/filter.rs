//! What frames are wanted: a small expression in the words of pcap-filter(7), compiled once, asked of each frame.
//!
//! ```text
//!   EXPR  = AND { "or" AND }          AND = NOT { "and" NOT }          NOT = "not" NOT | "(" EXPR ")" | TEST
//!   TEST  = arp | ip | ip6 | tcp | udp | icmp | icmp6 | broadcast | multicast
//!         | vlan [VID] | ethertype N | proto N
//!         | [src|dst] mac MAC | [src|dst] host ADDRESS | [src|dst] net ADDRESS/BITS | [src|dst] port N
//! ```
//!
//! Unlike there, every test looks behind VLAN tags, wherever `vlan` stands.
//!
//! Asked on a worker. Budget: [`MOST_TESTS`] tests at most, of a copy of a frame's first [`LOOKED_AT`] bytes; no allocation, no
//! lock, no panic. What lies beyond them, or what the frame is too short for, is not there: a test for it fails.

use std::net::IpAddr;

use crate::net::Mac;

/// Tests of one expression at most.
pub const MOST_TESTS: usize = 64;
/// How deep parentheses and `not` may be nested.
const DEEPEST: usize = 32;
/// Bytes of a frame that are looked at.
pub(super) const LOOKED_AT: usize = 256;
/// Extension headers of IPv6 that are passed over.
const MOST_EXTENSIONS: usize = 8;

/// An expression, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Each leads to others that stand before it: it ends, after as many as there are at most. Begun with the last.
    steps: Vec<Step>,
}

/// Text that is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}, at {}", if at.is_empty() { "the end".to_owned() } else { format!("`{at}`") })]
pub struct BadFilter {
    why: String,
    /// The word that does not fit.
    at: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    test: Test,
    yes: Next,
    no: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Take,
    Leave,
    Step(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Ethertype(u16),
    /// None: any.
    Vlan(Option<u16>),
    Proto(u8),
    Mac(End, Mac),
    Multicast,
    /// An address and how many of its bits count.
    Net(End, IpAddr, u8),
    Port(End, u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
    Either,
}

enum Expr {
    Test(Test),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
}

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is none, or too large; the text says where.
    pub fn parse(text: &str) -> Result<Filter, BadFilter> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('!', " not ");
        let spaced = spaced.replace("&&", " and ").replace("||", " or ");
        let mut words = Words { words: spaced.split_whitespace().collect(), at: 0, tests: 0 };
        let expr = words.expr(0)?;
        if let Some(word) = words.peek() {
            return Err(bad("`and` or `or` was expected", word));
        }
        let mut steps = Vec::with_capacity(words.tests);
        emit(&expr, Next::Take, Next::Leave, &mut steps);
        Ok(Filter { steps })
    }

    /// Whether a frame that begins so is wanted.
    pub fn takes(&self, frame: &[u8]) -> bool {
        let found = Found::of(frame.get(..LOOKED_AT).unwrap_or(frame));
        let mut next = self.steps.len().checked_sub(1).map_or(Next::Take, Next::Step);
        loop {
            next = match next {
                Next::Take => return true,
                Next::Leave => return false,
                Next::Step(at) => match self.steps.get(at) {
                    Some(step) if found.passes(&step.test) => step.yes,
                    Some(step) => step.no,
                    None => return false,
                },
            };
        }
    }
}

/// Writes the steps of an expression, the last first; where it begins.
fn emit(expr: &Expr, yes: Next, no: Next, steps: &mut Vec<Step>) -> Next {
    match expr {
        Expr::Test(test) => {
            steps.push(Step { test: *test, yes, no });
            Next::Step(steps.len() - 1)
        }
        Expr::Not(inner) => emit(inner, no, yes, steps),
        Expr::And(first, second) => {
            let second = emit(second, yes, no, steps);
            emit(first, second, no, steps)
        }
        Expr::Or(first, second) => {
            let second = emit(second, yes, no, steps);
            emit(first, yes, second, steps)
        }
    }
}

fn bad(why: impl Into<String>, at: &str) -> BadFilter {
    BadFilter { why: why.into(), at: at.chars().filter(|letter| !letter.is_control()).take(40).collect() }
}

struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
    tests: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self) -> Result<&'a str, BadFilter> {
        let word = self.peek().ok_or_else(|| bad("something is missing", ""))?;
        self.at += 1;
        Ok(word)
    }

    fn is_next(&mut self, word: &str) -> bool {
        let is_next = self.peek() == Some(word);
        self.at += usize::from(is_next);
        is_next
    }

    fn expr(&mut self, depth: usize) -> Result<Expr, BadFilter> {
        let mut expr = self.and(depth)?;
        while self.is_next("or") {
            expr = Expr::Or(Box::new(expr), Box::new(self.and(depth)?));
        }
        Ok(expr)
    }

    fn and(&mut self, depth: usize) -> Result<Expr, BadFilter> {
        let mut expr = self.not(depth)?;
        while self.is_next("and") {
            expr = Expr::And(Box::new(expr), Box::new(self.not(depth)?));
        }
        Ok(expr)
    }

    fn not(&mut self, depth: usize) -> Result<Expr, BadFilter> {
        if depth > DEEPEST {
            return Err(bad(format!("nested deeper than {DEEPEST}"), self.peek().unwrap_or_default()));
        }
        if self.is_next("not") {
            return Ok(Expr::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.is_next("(") {
            let expr = self.expr(depth + 1)?;
            return match self.is_next(")") {
                true => Ok(expr),
                false => Err(bad("`)` was expected", self.peek().unwrap_or_default())),
            };
        }
        self.tests += 1;
        if self.tests > MOST_TESTS {
            return Err(bad(format!("more than {MOST_TESTS} tests"), self.peek().unwrap_or_default()));
        }
        self.test()
    }

    fn test(&mut self) -> Result<Expr, BadFilter> {
        let both = |first, second| Expr::And(Box::new(Expr::Test(first)), Box::new(Expr::Test(second)));
        let either = |first, second| Expr::Or(Box::new(Expr::Test(first)), Box::new(Expr::Test(second)));
        let word = self.take()?;
        Ok(match word {
            "arp" => Expr::Test(Test::Ethertype(ARP)),
            "ip" => Expr::Test(Test::Ethertype(IPV4)),
            "ip6" => Expr::Test(Test::Ethertype(IPV6)),
            "tcp" => Expr::Test(Test::Proto(6)),
            "udp" => Expr::Test(Test::Proto(17)),
            "icmp" => both(Test::Ethertype(IPV4), Test::Proto(1)),
            "icmp6" => both(Test::Ethertype(IPV6), Test::Proto(58)),
            "broadcast" => Expr::Test(Test::Mac(End::Destination, Mac([0xff; 6]))),
            "multicast" => Expr::Test(Test::Multicast),
            "vlan" => match self.peek().filter(|next| next.starts_with(|digit: char| digit.is_ascii_digit()))
            {
                None => Expr::Test(Test::Vlan(None)),
                Some(next) => {
                    self.at += 1;
                    let vid: u16 = number(next)?;
                    if vid > 4095 {
                        return Err(bad("a VLAN is 0 to 4095", next));
                    }
                    Expr::Test(Test::Vlan(Some(vid)))
                }
            },
            "ethertype" => Expr::Test(Test::Ethertype(number(self.take()?)?)),
            "proto" => Expr::Test(Test::Proto(number(self.take()?)?)),
            "src" => self.end(End::Source)?,
            "dst" => self.end(End::Destination)?,
            "mac" | "ether" | "host" | "net" | "port" => {
                self.at -= 1;
                self.end(End::Either)?
            }
            "and" | "or" | ")" => return Err(bad("a test was expected", word)),
            // An address without `host` is clear enough in pcap-filter(7).
            other => match other.parse() {
                Ok(address) => either(
                    Test::Net(End::Source, address, bits_of(address)),
                    Test::Net(End::Destination, address, bits_of(address)),
                ),
                Err(_) => return Err(bad(format!("there is no such test; there are {TESTS}"), other)),
            },
        })
    }

    /// What is asked of an end.
    fn end(&mut self, end: End) -> Result<Expr, BadFilter> {
        let kind = self.take()?;
        Ok(Expr::Test(match kind {
            "mac" | "ether" => {
                // `ether host`, as pcap-filter(7) has it.
                if kind == "ether" && !self.is_next("host") {
                    return Err(bad("`host` was expected", self.peek().unwrap_or_default()));
                }
                let word = self.take()?;
                Test::Mac(end, word.parse().map_err(|_| bad("no MAC address", word))?)
            }
            "host" => {
                let word = self.take()?;
                let address: IpAddr = word.parse().map_err(|_| bad("no IP address", word))?;
                Test::Net(end, address, bits_of(address))
            }
            "net" => {
                let word = self.take()?;
                let no_net = || bad("no network, as in 10.0.0.0/8", word);
                let (address, bits) = word.split_once('/').ok_or_else(no_net)?;
                let address: IpAddr = address.parse().map_err(|_| no_net())?;
                let bits: u8 = bits.parse().map_err(|_| no_net())?;
                if bits > bits_of(address) {
                    return Err(no_net());
                }
                Test::Net(end, address, bits)
            }
            "port" => Test::Port(end, number(self.take()?)?),
            other => return Err(bad("mac, host, net or port was expected", other)),
        }))
    }
}

/// A number, in hexadecimal too.
fn number<T: TryFrom<u32>>(word: &str) -> Result<T, BadFilter> {
    let value = match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => word.parse(),
    };
    value.ok().and_then(|value| T::try_from(value).ok()).ok_or_else(|| bad("no number that fits", word))
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What a frame says of itself.
#[derive(Debug, Default)]
struct Found {
    macs: Option<(Mac, Mac)>,
    /// Of the outermost tag.
    vlan: Option<u16>,
    ethertype: Option<u16>,
    /// Source and destination.
    addresses: Option<(IpAddr, IpAddr)>,
    proto: Option<u8>,
    ports: Option<(u16, u16)>,
}

impl Found {
    fn of(frame: &[u8]) -> Found {
        let mut found = Found::default();
        // As far as it goes.
        let _ = found.read(frame);
        found
    }

    fn read(&mut self, frame: &[u8]) -> Option<()> {
        let (destination, rest) = frame.split_first_chunk::<6>()?;
        let (source, rest) = rest.split_first_chunk::<6>()?;
        self.macs = Some((Mac(*source), Mac(*destination)));
        let (mut kind, mut rest) = word(rest)?;
        for _ in 0..2 {
            if !matches!(kind, VLAN | SERVICE_VLAN) {
                break;
            }
            let (tag, behind) = word(rest)?;
            self.vlan.get_or_insert(tag & 0xfff);
            (kind, rest) = word(behind)?;
        }
        self.ethertype = Some(kind);
        match kind {
            ARP => {
                // Of Ethernet and IPv4: addresses of sender and target.
                let address = |at: usize| Some(IpAddr::from(*rest.get(at..)?.first_chunk::<4>()?));
                if rest.get(..6)? == [0, 1, 8, 0, 6, 4] {
                    self.addresses = Some((address(14)?, address(24)?));
                }
                None
            }
            IPV4 => {
                let (head, _) = rest.split_first_chunk::<20>()?;
                let address = |at: usize| Some(IpAddr::from(*head.get(at..)?.first_chunk::<4>()?));
                self.addresses = Some((address(12)?, address(16)?));
                self.proto = Some(head[9]);
                let is_first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
                let behind = rest.get(usize::from(head[0] & 0xf) * 4..).filter(|_| is_first)?;
                self.read_ports(behind)
            }
            IPV6 => {
                let (head, mut rest) = rest.split_first_chunk::<40>()?;
                let address = |at: usize| Some(IpAddr::from(*head.get(at..)?.first_chunk::<16>()?));
                self.addresses = Some((address(8)?, address(24)?));
                let mut kind = head[6];
                for _ in 0..=MOST_EXTENSIONS {
                    self.proto = Some(kind);
                    let extension = rest.first_chunk::<8>();
                    let bytes = match (kind, extension) {
                        // Hop-by-hop, routing, destination options.
                        (0 | 43 | 60, Some(head)) => 8 + usize::from(head[1]) * 8,
                        // Of a fragment that is not the first, ports are elsewhere.
                        (44, Some(head)) if u16::from_be_bytes([head[2], head[3]]) >> 3 == 0 => 8,
                        (44, Some(head)) => {
                            self.proto = Some(head[0]);
                            return None;
                        }
                        _ => return self.read_ports(rest),
                    };
                    kind = extension?[0];
                    rest = rest.get(bytes..)?;
                }
                None
            }
            _ => None,
        }
    }

    fn read_ports(&mut self, rest: &[u8]) -> Option<()> {
        // TCP, UDP, SCTP.
        if matches!(self.proto, Some(6 | 17 | 132)) {
            let (source, rest) = word(rest)?;
            let (destination, _) = word(rest)?;
            self.ports = Some((source, destination));
        }
        Some(())
    }

    fn passes(&self, test: &Test) -> bool {
        match *test {
            Test::Ethertype(kind) => self.ethertype == Some(kind),
            Test::Vlan(None) => self.vlan.is_some(),
            Test::Vlan(vid) => self.vlan == vid,
            Test::Proto(proto) => self.proto == Some(proto),
            Test::Mac(end, mac) => end.is_so(self.macs, |has| has == mac),
            Test::Multicast => self.macs.is_some_and(|(_, destination)| destination.is_multicast()),
            Test::Net(end, net, bits) => end.is_so(self.addresses, |has| is_in(has, net, bits)),
            Test::Port(end, port) => end.is_so(self.ports, |has| has == port),
        }
    }
}

impl End {
    fn is_so<T: Copy>(self, ends: Option<(T, T)>, is_so: impl Fn(T) -> bool) -> bool {
        let Some((source, destination)) = ends else { return false };
        match self {
            End::Source => is_so(source),
            End::Destination => is_so(destination),
            End::Either => is_so(source) || is_so(destination),
        }
    }
}

/// The first `bits` of two addresses of one kind are the same.
fn is_in(has: IpAddr, net: IpAddr, bits: u8) -> bool {
    let (differ, all) = match (has, net) {
        (IpAddr::V4(has), IpAddr::V4(net)) => (u128::from(has.to_bits() ^ net.to_bits()), 32),
        (IpAddr::V6(has), IpAddr::V6(net)) => (has.to_bits() ^ net.to_bits(), 128),
        _ => return false,
    };
    differ.checked_shr(all - u32::from(bits).min(all)).unwrap_or(0) == 0
}

/// Two bytes, the higher first, and what is behind them.
fn word(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*word), rest))
}

const TESTS: &str = "arp, ip, ip6, tcp, udp, icmp, icmp6, broadcast, multicast, vlan, ethertype, proto, mac, host, net and port";

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

#[cfg(test)]
mod tests {
    use super::*;

    fn udp4(tag: Option<u16>, from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if let Some(tag) = tag {
            frame.extend([0x81, 0]);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend(from);
        frame.extend(to);
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend([0, 8, 0, 0]);
        frame
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 9]].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9]);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    /// TCP behind a hop-by-hop header; or a fragment of it that is not the first.
    fn tcp6(offset: Option<u16>) -> Vec<u8> {
        let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 40];
        frame.extend([if offset.is_some() { 44 } else { 0 }, 64]);
        frame.extend("fe80::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        frame.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        match offset {
            Some(offset) => {
                let [high, low] = (offset << 3).to_be_bytes();
                frame.extend([6, 0, high, low, 0, 0, 0, 1]);
            }
            None => frame.extend([6, 0, 1, 4, 0, 0, 0, 0]),
        }
        frame.extend([0, 22, 0x9c, 0x40, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn frames_pass_that_an_expression_is_true_of_and_no_others() {
        let plain = udp4(None, [10, 0, 0, 1], [10, 0, 0, 2], (5000, 53));
        let tagged = udp4(Some(100), [10, 1, 0, 1], [192, 168, 1, 2], (53, 5000));
        let arp = arp([10, 0, 0, 9], [10, 0, 0, 1]);
        let (tcp6, fragment) = (tcp6(None), tcp6(Some(100)));
        let all = [&plain, &tagged, &arp, &tcp6, &fragment];
        for (text, expected) in [
            ("ip", [true, true, false, false, false]),
            ("arp", [false, false, true, false, false]),
            ("ip6", [false, false, false, true, true]),
            ("ethertype 0x806", [false, false, true, false, false]),
            ("udp", [true, true, false, false, false]),
            ("tcp", [false, false, false, true, true]),
            ("icmp or icmp6", [false; 5]),
            ("broadcast", [false, false, true, false, false]),
            ("multicast", [false, false, true, true, true]),
            ("vlan", [false, true, false, false, false]),
            ("vlan 100 and udp", [false, true, false, false, false]),
            ("vlan 101", [false; 5]),
            ("port 53", [true, true, false, false, false]),
            ("dst port 53", [true, false, false, false, false]),
            ("src port 53", [false, true, false, false, false]),
            ("port 22", [false, false, false, true, false]),
            ("host 10.0.0.1", [true, false, true, false, false]),
            ("10.0.0.1", [true, false, true, false, false]),
            ("src host 10.0.0.1", [true, false, false, false, false]),
            ("net 10.0.0.0/8", [true, true, true, false, false]),
            ("dst net 10.0.0.0/8", [true, false, true, false, false]),
            ("net 0.0.0.0/0", [true, true, true, false, false]),
            ("dst net 2001:db8::/32", [false, false, false, true, true]),
            ("net ::/0", [false, false, false, true, true]),
            ("mac 02:00:00:00:00:01", [true, true, false, true, true]),
            ("ether host 02:00:00:00:00:09", [false, false, true, false, false]),
            ("dst mac 02:00:00:00:00:01", [false; 5]),
            ("not arp and not (udp or port 22)", [false, false, false, false, true]),
            ("!(ip||arp)&&port 22", [false, false, false, true, false]),
            ("arp or ip and port 5000 and vlan", [false, true, true, false, false]),
            ("(arp or ip) and (vlan or arp)", [false, true, true, false, false]),
            ("not not proto 6", [false, false, false, true, true]),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!(all.map(|frame| filter.takes(frame)), expected, "{text}");
            // Whatever is cut off, it ends, and what is not there is not found.
            for frame in all {
                let cut = (0..frame.len()).filter(|len| filter.takes(&frame[..*len])).count();
                assert!(cut <= frame.len());
            }
        }
    }

    #[test]
    fn text_that_is_no_expression_is_refused_at_the_word_that_does_not_fit() {
        for (text, at) in [
            ("", "the end"),
            ("udp and", "the end"),
            ("(udp", "the end"),
            ("udp )", "`)`"),
            ("udp tcp", "`tcp`"),
            ("or udp", "`or`"),
            ("port x", "`x`"),
            ("port 65536", "`65536`"),
            ("proto 256", "`256`"),
            ("vlan 4096", "`4096`"),
            ("net 10.0.0.0/33", "`10.0.0.0/33`"),
            ("src udp", "`udp`"),
            ("ether proto", "`proto`"),
            ("host example", "`example`"),
            ("mac 1", "`1`"),
            ("ftp\u{7}", "`ftp`"),
        ] {
            let error = Filter::parse(text).unwrap_err().to_string();
            assert!(error.ends_with(at), "{text}: {error}");
        }
    }

    #[test]
    fn expression_has_so_many_tests_and_is_nested_so_deep_and_no_more() {
        let tests = |count: usize| vec!["udp"; count].join(" or ");
        assert!(Filter::parse(&tests(MOST_TESTS)).is_ok() && Filter::parse(&tests(MOST_TESTS + 1)).is_err());
        let nested = |depth: usize| format!("{}udp{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Filter::parse(&nested(DEEPEST)).is_ok() && Filter::parse(&nested(DEEPEST + 1)).is_err());
        assert!(Filter::parse(&"not ".repeat(100_000)).is_err());
    }

    #[test]
    fn as_many_extension_headers_are_passed_over_as_may_be() {
        for (count, is_found) in [(MOST_EXTENSIONS, true), (MOST_EXTENSIONS + 1, false)] {
            let mut frame = tcp6(None);
            frame.truncate(54);
            for nth in 1..=count {
                frame.extend([if nth == count { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            }
            frame.extend([0, 22, 0x9c, 0x40]);
            assert_eq!(Filter::parse("tcp and port 22").unwrap().takes(&frame), is_found, "{count}");
        }
    }

    #[test]
    fn what_lies_beyond_the_bytes_that_are_looked_at_is_not_found() {
        let mut frame = tcp6(None);
        // Its hop-by-hop header is as long as it may be.
        frame[55] = 255;
        let at = 54 + 8 + 255 * 8;
        frame.resize(at, 0);
        frame.extend([0, 22, 0, 1]);
        assert!(!Filter::parse("port 22").unwrap().takes(&frame));
    }
}
