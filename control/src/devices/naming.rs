//! What names devices and management devices may have.

use crate::fault::{Fault, printable};

/// The longest name of a device, in bytes.
pub const LONGEST_NAME: usize = 64;

/// Checks a device's name: it becomes the name of a socket and of a file.
///
/// # Errors
/// It is empty, too long, or has characters other than ASCII letters, digits, `.`, `_` and `-`; or it begins with one
/// of the last two or with a point.
pub fn check_name(name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::usage("device name is not set.").at("name"));
    }
    check_name_of("a device", name)
}

/// Checks the name of `what` ("a device"), which is not empty.
pub(super) fn check_name_of(what: &str, name: &str) -> Result<(), Fault> {
    if name.len() > LONGEST_NAME {
        return Err(Fault::usage(format!(
            "{what}'s name has at most {LONGEST_NAME} bytes, this has {}",
            name.len()
        ))
        .at("name"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) || name.starts_with(['.', '-']) {
        return Err(Fault::usage(format!("`{}` cannot be {what}'s name", printable(name)))
            .at("name")
            .hint("ASCII letters, digits, `.`, `_` and `-`, beginning with a letter, a digit or `_`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn names_that_could_leave_the_directory_or_confuse_a_shell_are_refused() {
        let long = "x".repeat(65);
        for name in
            ["", "../x", "a/b", ".", "..", ".hidden", "-rf", "a b", "vm\n0", "naïve", "日本", long.as_str()]
        {
            assert_eq!(check_name(name).unwrap_err().kind, Kind::Usage, "{name:?}");
        }
        for name in ["vm0", "_x", "0", "a.b-c_d", &long[..64]] {
            check_name(name).unwrap();
        }
    }
}
