//! A desktop's bus with as much of a desktop on it as the app speaks to: it takes notifications
//! (<https://specifications.freedesktop.org/notification-spec/latest/>) and icons, and presses what
//! is in their menus (<https://www.freedesktop.org/wiki/Specifications/StatusNotifierItem/>).

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
};

use zbus::{
    blocking::{Connection, Proxy, connection, fdo::DBusProxy},
    message::Header,
    zvariant::{OwnedObjectPath, OwnedValue, Value},
};

use crate::webdriver::{PATIENCE, Program, wait};

/// A title and a text.
type Notice = (String, String);

struct Notifications(Sender<Notice>);

#[zbus::interface(name = "org.freedesktop.Notifications")]
impl Notifications {
    fn notify(
        &self,
        _app: &str,
        _replaced: u32,
        _icon: &str,
        title: String,
        text: String,
        _actions: Vec<String>,
        _hints: HashMap<String, OwnedValue>,
        _expires: i32,
    ) -> u32 {
        // A test that listens no more misses nothing.
        let _ = self.0.send((title, text));
        1
    }

    fn close_notification(&self, _id: u32) {}

    fn get_capabilities(&self) -> Vec<String> {
        vec!["body".into()]
    }

    fn get_server_information(&self) -> (String, String, String, String) {
        ("Nibble's tests".into(), "Nibble".into(), "1".into(), "1.2".into())
    }
}

struct Watcher(Sender<Icon>);

#[zbus::interface(name = "org.kde.StatusNotifierWatcher")]
impl Watcher {
    fn register_status_notifier_item(&self, path: String, #[zbus(header)] header: Header<'_>) {
        let Some(owner) = header.sender() else { return };
        let _ = self.0.send(Icon { owner: owner.to_string(), path });
    }

    fn register_status_notifier_host(&self, _name: &str) {}

    #[zbus(property)]
    fn is_status_notifier_host_registered(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn protocol_version(&self) -> i32 {
        0
    }

    #[zbus(property)]
    fn registered_status_notifier_items(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An icon that an app has put on the screen.
pub struct Icon {
    owner: String,
    path: String,
}

/// The bus, and what came over it.
pub struct Bus {
    address: String,
    connection: Connection,
    notices: Receiver<Notice>,
    icons: Receiver<Icon>,
    _daemon: Program,
}

impl Bus {
    /// Starts one that nobody else is on.
    pub fn new() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon starts; it is in Debian's package dbus-daemon");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let daemon = Program(daemon);
        let address = address.trim().to_owned();
        let (notice, notices) = mpsc::channel();
        let (icon, icons) = mpsc::channel();
        let connection = connection::Builder::address(address.as_str())
            .and_then(|bus| bus.name("org.freedesktop.Notifications"))
            .and_then(|bus| bus.name("org.kde.StatusNotifierWatcher"))
            .and_then(|bus| bus.serve_at("/org/freedesktop/Notifications", Notifications(notice)))
            .and_then(|bus| bus.serve_at("/StatusNotifierWatcher", Watcher(icon)))
            .and_then(connection::Builder::build)
            .expect("the bus takes a desktop");
        Self { address, connection, notices, icons, _daemon: daemon }
    }

    /// How programs find it: the name and value of a variable of their environment.
    pub fn variable(&self) -> (&str, &str) {
        ("DBUS_SESSION_BUS_ADDRESS", &self.address)
    }

    /// The next notification.
    pub fn notice(&self) -> Notice {
        self.notices.recv_timeout(PATIENCE).expect("a notification comes")
    }

    /// The next icon that an app shows.
    pub fn icon(&self) -> Icon {
        self.icons.recv_timeout(PATIENCE).expect("an icon comes")
    }

    /// Whether the program behind an icon is still there.
    pub fn is_running(&self, icon: &Icon) -> bool {
        let bus = DBusProxy::new(&self.connection).unwrap();
        bus.name_has_owner(icon.owner.as_str().try_into().unwrap()).unwrap()
    }

    /// What an icon says of itself.
    fn item(&self, icon: &Icon) -> Proxy<'_> {
        let interface = "org.kde.StatusNotifierItem";
        let (owner, path) = (icon.owner.clone(), icon.path.clone());
        Proxy::new(&self.connection, owner, path, interface).unwrap()
    }

    /// Whether an icon is shown. One that is not may still be there, and is passive.
    pub fn is_shown(&self, icon: &Icon) -> bool {
        let status = self.item(icon).get_property::<String>("Status");
        status.is_ok_and(|status| status != "Passive")
    }

    /// Chooses what is called `label` in an icon's menu.
    pub fn choose(&self, icon: &Icon, label: &str) {
        let menu = || self.item(icon).get_property::<OwnedObjectPath>("Menu").ok();
        let path = wait("the icon's menu", menu);
        let interface = "com.canonical.dbusmenu";
        let menu = Proxy::new(&self.connection, icon.owner.clone(), path, interface).unwrap();
        let entry = wait(label, || {
            let ids: Vec<i32> = (0..64).collect();
            let entries: Vec<(i32, HashMap<String, OwnedValue>)> =
                menu.call("GetGroupProperties", &(ids, vec!["label"])).ok()?;
            entries.into_iter().find_map(|(id, properties)| {
                let found: &str = properties.get("label")?.downcast_ref().ok()?;
                (found == label).then_some(id)
            })
        });
        let arguments = (entry, "clicked", Value::from(0_i32), 0_u32);
        menu.call::<_, _, ()>("Event", &arguments).unwrap();
    }
}
