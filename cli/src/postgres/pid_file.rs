//! postmaster.pid: which process says that it serves a data directory, and how
//! far it is. Anybody may have written it.

/// The process. A single-user server writes its number negated.
pub fn process(text: &str) -> Option<i32> {
    text.lines().next()?.trim().parse::<i32>().ok()?.checked_abs()
}

/// What the server says of itself: line 8.
pub fn status(text: &str) -> Option<&str> {
    text.lines().nth(7).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_pid_file() {
        let text = "12\n/d\n1700000000\n6001\n/s\nlocalhost\n  1 2\nready   \n";
        assert_eq!((process(text), status(text)), (Some(12), Some("ready")));
        assert_eq!(process("-12\n"), Some(12), "a single-user server");
        assert_eq!(status("12\n/d\n"), None);
        assert_eq!((process(""), process("x"), process("99999999999")), (None, None, None));
    }

    #[test]
    fn the_smallest_number_is_no_process() {
        assert_eq!(process("-2147483648\n"), None);
    }
}
