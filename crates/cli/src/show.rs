//! Numbers as people read them.

/// Bytes in GiB or MiB, with three digits.
pub fn bytes(n: u64) -> String {
    if n == 0 {
        return "0".into();
    }
    let n = n as f64;
    let (value, unit) = match n {
        n if n >= 1024.0 * 1024.0 * 1024.0 => (n / (1024.0 * 1024.0 * 1024.0), "GiB"),
        n if n >= 1024.0 * 1024.0 => (n / (1024.0 * 1024.0), "MiB"),
        n => (n / 1024.0, "KiB"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// A length of time with two digits or more.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A small difference, with as many digits as say something.
pub fn difference(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.1e}") }
}

/// A count with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(5_368_709_120), "5.00 GiB");
        assert_eq!(bytes(123_456_789), "118 MiB");
        assert_eq!(bytes(0), "0");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(difference(0.0), "0");
        assert_eq!(difference(1.037e-5), "1.0e-5");
    }
}
