//! The real app in a real window without a screen: Xvfb, WebKit's own WebDriver, and as much of the
//! WebDriver protocol as the test speaks (<https://www.w3.org/TR/webdriver2/>).

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long anything may take: the machine that tests may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The arrow keys, as the protocol writes them.
pub const KEY_LEFT: &str = "\u{E012}";
/// The arrow to the right.
pub const KEY_RIGHT: &str = "\u{E014}";

/// The key to the first value.
pub const KEY_HOME: &str = "\u{E011}";
/// The key to the last value.
pub const KEY_END: &str = "\u{E010}";

/// The key under which the protocol hands out elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A program that ends with the test.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A screen that nobody sees, and a driver on it.
pub struct Screen {
    port: u16,
    display_number: String,
    _driver: Program,
    _display: Program,
}

impl Screen {
    /// Starts both; the app will have `home` for its files, and no desktop around it.
    pub fn new(home: &Path) -> Self {
        // An address at which nobody listens: what the tests' own desktop is does not matter.
        Self::within(home, ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere"))
    }

    /// The same on the bus that a variable of the environment names.
    pub fn within(home: &Path, bus: (&str, &str)) -> Self {
        let mut display = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1400x900x24", "-nolisten", "tcp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb starts; it is in Debian's package xvfb");
        let mut number = String::new();
        BufReader::new(display.stdout.take().unwrap()).read_line(&mut number).unwrap();
        let display = Program(display);

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut driver = Command::new("WebKitWebDriver");
        driver
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .env("DISPLAY", format!(":{}", number.trim()))
            .env("HOME", home)
            .env(bus.0, bus.1)
            .env("GDK_BACKEND", "x11")
            // The app lets itself be driven when it is told so.
            .env("TAURI_AUTOMATION", "true")
            .env("TAURI_WEBVIEW_AUTOMATION", "true");
        for folder in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DOCUMENTS_DIR"] {
            driver.env(folder, home.join(folder.to_lowercase()));
        }
        let driver = driver.spawn().expect("the driver starts; it is in webkit2gtk-driver");
        let display_number = number.trim().to_owned();
        let screen = Self { port, display_number, _driver: Program(driver), _display: display };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "the driver listens");
            thread::sleep(Duration::from_millis(50));
        }
        screen
    }

    /// The number that X clients name the screen by.
    pub fn display(&self) -> &str {
        &self.display_number
    }

    /// Opens the app.
    pub fn open(&self, program: &Path) -> Window<'_> {
        let options = json!({ "binary": program, "args": [] });
        let body = json!({ "capabilities": { "alwaysMatch": {
            "webkitgtk:browserOptions": options,
            "timeouts": { "script": PATIENCE.as_millis() as u64 },
        } } });
        let session = self.call("POST", "/session", &body);
        let id = session["sessionId"].as_str().expect("a session").to_owned();
        let window = Window { screen: self, id };
        // A script that runs while the first page gives way to the app's is never answered.
        wait("the app's page", || {
            let address = self.call("GET", &window.path("url"), &Value::Null);
            address.as_str()?.starts_with("tauri:").then_some(())
        });
        window
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error:#}"))
    }

    /// One request; the error is what the driver says.
    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader
            .read_line(&mut status)
            .unwrap_or_else(|error| panic!("{method} {path} {body} is not answered: {error}"));
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        let value = answer["value"].take();
        if status.contains(" 200 ") { Ok(value) } else { Err(value) }
    }
}

/// The app's window.
pub struct Window<'a> {
    screen: &'a Screen,
    id: String,
}

impl Window<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/session/{}/{rest}", self.id)
    }

    /// Loads the page again.
    pub fn reload(&self) {
        self.screen.call("POST", &self.path("refresh"), &json!({}));
    }

    /// What `script` returns.
    pub fn run(&self, script: &str, arguments: &[Value]) -> Value {
        let body = json!({ "script": script, "args": arguments });
        self.screen.call("POST", &self.path("execute/sync"), &body)
    }

    /// What a command of the app answers, or its error.
    pub fn invoke(&self, command: &str, arguments: Value) -> Result<Value, Value> {
        let script = "const [command, values, done] = arguments;
            window.__TAURI_INTERNALS__.invoke(command, values)
                .then((value) => done([value ?? null, null]), (error) => done([null, error]));";
        let body = json!({ "script": script, "args": [command, arguments] });
        let mut answer = self.screen.call("POST", &self.path("execute/async"), &body);
        let error = answer[1].take();
        if error.is_null() { Ok(answer[0].take()) } else { Err(error) }
    }

    /// The first element that fits, as soon as there is one.
    fn element(&self, selector: &str) -> String {
        let body = json!({ "using": "css selector", "value": selector });
        let mut last = Value::Null;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.screen.try_call("POST", &self.path("element"), &body) {
                Ok(found) => return found[ELEMENT].as_str().unwrap().to_owned(),
                Err(error) => last = error,
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("no {selector}: {last}");
    }

    /// Clicks what fits, as soon as it is there and can be clicked.
    pub fn click(&self, selector: &str) {
        let mut last = Value::Null;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let path = self.path(&format!("element/{}/click", self.element(selector)));
            match self.screen.try_call("POST", &path, &json!({})) {
                Ok(_) => return,
                Err(error) => last = error,
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{selector} cannot be clicked: {last}");
    }

    /// Presses a key on what fits.
    pub fn press(&self, selector: &str, key: &str) {
        let element = self.element(selector);
        let path = self.path(&format!("element/{element}/value"));
        self.screen.call("POST", &path, &json!({ "text": key }));
    }

    /// Replaces the text of an input, as a person does.
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        let select = "arguments[0].focus(); arguments[0].select();";
        self.run(select, &[json!({ ELEMENT: element })]);
        let path = self.path(&format!("element/{element}/value"));
        // The delete key first: an empty text is no key at all.
        self.screen.call("POST", &path, &json!({ "text": format!("\u{E017}{text}") }));
        // Inputs that take effect when they are left.
        self.run("arguments[0].blur();", &[json!({ ELEMENT: element })]);
    }

    /// The text of what fits, once it holds `is_right`.
    pub fn text(&self, selector: &str, is_right: impl Fn(&str) -> bool) -> String {
        let script = "return document.querySelector(arguments[0])?.textContent ?? null;";
        self.wait(&format!("the text of {selector}"), || {
            let text = self.run(script, &[json!(selector)]);
            text.as_str().filter(|text| is_right(text)).map(str::to_owned)
        })
    }

    /// What `look` finds, as soon as it finds something.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        poll(look).unwrap_or_else(|| {
            let text = self.run("return document.body.innerText;", &[]);
            panic!("{what} did not come; the page says: {text}")
        })
    }

    /// Writes a picture of the page, when the environment names a folder for pictures.
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("NIBBLE_PICTURES") else { return };
        fs::create_dir_all(&folder).unwrap();
        // WebKit takes its picture with the next frame, and a page at rest has none.
        let move_on = "let n = 0; window.moving = setInterval(
            () => { document.body.style.opacity = n++ % 2 ? 1 : 0.999; }, 50);";
        self.run(move_on, &[]);
        let picture = self.screen.call("GET", &self.path("screenshot"), &Value::Null);
        self.run("clearInterval(window.moving); document.body.style.opacity = '';", &[]);
        let bytes = base64(picture.as_str().unwrap());
        fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // Ends the app.
        let path = format!("/session/{}", self.id);
        let _ = self.screen.try_call("DELETE", &path, &Value::Null);
    }
}

fn poll<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(100));
    }
    None
}

/// What `look` finds, as soon as it finds something.
pub fn wait<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(look).unwrap_or_else(|| panic!("{what} did not come"))
}

/// The bytes that base64 stands for.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let values: Vec<u8> = text.bytes().filter_map(value).collect();
    values
        .chunks(4)
        .flat_map(|four| {
            let bits =
                (0..4).fold(0_u32, |bits, i| bits << 6 | four.get(i).copied().map_or(0, u32::from));
            let n_bytes = four.len() * 6 / 8;
            bits.to_be_bytes()[1..=n_bytes].to_vec()
        })
        .collect()
}
