//! Numbers as people read them.

use nibble_run::CardReadings;

/// A size in binary units, with three significant digits.
pub fn bytes(n_bytes: f64) -> String {
    let (unit, name) = byte_unit(n_bytes);
    let value = n_bytes / unit;
    match value.abs() {
        _ if unit == 1.0 => format!("{value:.0} {name}"),
        size if size >= 99.95 => format!("{value:.0} {name}"),
        size if size >= 9.995 => format!("{value:.1} {name}"),
        _ => format!("{value:.2} {name}"),
    }
}

/// A size a second.
pub fn byte_rate(bytes_per_second: f64) -> String {
    bytes(bytes_per_second) + "/s"
}

/// A card's temperature and the power that it draws, as far as it tells.
pub fn card(readings: &CardReadings) -> Option<String> {
    let said = [
        readings.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")),
        readings.power_watts.map(|watts| format!("{watts:.0} W")),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// The unit in which `n_bytes` is written: its size and its name.
pub fn byte_unit(n_bytes: f64) -> (f64, &'static str) {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 1.0;
    for name in UNITS {
        // What would be rounded to 1024 belongs to the next.
        if n_bytes.abs() < 1023.5 * unit || name == UNITS[UNITS.len() - 1] {
            return (unit, name);
        }
        unit *= 1024.0;
    }
    (1.0, UNITS[0])
}

/// A whole number with its thousands apart.
pub fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0.0 && digits != "0" {
        text.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A model's size as people say it: 135 M, 1.1 B.
pub fn parameters(n_parameters: u64) -> String {
    let number = n_parameters as f64;
    let (value, name) = if number >= 1e9 { (number / 1e9, "B") } else { (number / 1e6, "M") };
    if value >= 9.95 { format!("{value:.0} {name}") } else { format!("{value:.1} {name}") }
}

/// A loss or a norm.
pub fn decimal(value: f64) -> String {
    if value.abs() < 10_000.0 { format!("{value:.4}") } else { scientific(value) }
}

/// A learning rate.
pub fn scientific(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:.2e}").replace("e-", "e−") }
}

/// A stretch of time, in its two largest units.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (minute, hour, day) = (60, 3600, 86_400);
    match whole {
        _ if whole < minute => format!("{whole} s"),
        _ if whole < hour => format!("{} min {:02} s", whole / minute, whole % minute),
        _ if whole < 2 * day => format!("{} h {:02} min", whole / hour, whole % hour / minute),
        _ => format!("{} d {} h", whole / day, whole % day / hour),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (value, text) in [
            (0.0, "0 B"),
            (1000.0, "1000 B"),
            (19_017_856.0, "18.1 MiB"),
            (1023.9 * 1024.0, "1.00 MiB"),
            (24_746_184_704.0, "23.0 GiB"),
            (5e15, "4547 TiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        let card = |temperature_celsius, power_watts| {
            card(&CardReadings { temperature_celsius, power_watts, ..CardReadings::default() })
        };
        assert_eq!(card(Some(61.4), Some(182.0)).unwrap(), "61 °C, 182 W");
        assert_eq!(card(None, Some(9.6)).unwrap(), "10 W");
        assert_eq!(card(None, None), None);
        for (value, text) in [(0.0, "0"), (999.6, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(count(value), text);
        }
        for (value, text) in [(0.4, "0 s"), (130.0, "2 min 10 s"), (3900.0, "1 h 05 min")] {
            assert_eq!(duration(value), text);
        }
        assert_eq!(duration(200_000.0), "2 d 7 h");
        assert_eq!(duration(f64::NAN), "0 s");
        assert_eq!(parameters(6_738_415_616), "6.7 B");
        assert_eq!(parameters(2_920_896), "2.9 M");
        assert_eq!(decimal(3.96088), "3.9609");
        assert_eq!(decimal(1e30), "1.00e30");
        assert_eq!(scientific(2e-4), "2.00e−4");
    }
}
