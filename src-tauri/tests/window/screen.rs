//! What a person does to windows from outside of them: sees that they are there, and closes them.

use x11rb::{
    connection::Connection,
    protocol::xproto::{Atom, ClientMessageEvent, ConnectionExt, EventMask, Window as WindowId},
    rust_connection::RustConnection,
};

/// The windows of a screen.
pub struct Desktop {
    connection: RustConnection,
    root: WindowId,
}

impl Desktop {
    /// Those of the display of that number.
    pub fn new(display: &str) -> Self {
        let (connection, screen) = RustConnection::connect(Some(&format!(":{display}"))).unwrap();
        let root = connection.setup().roots[screen].root;
        Self { connection, root }
    }

    fn atom(&self, name: &str) -> Atom {
        self.connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom
    }

    fn below(&self, window: WindowId, found: &mut Vec<WindowId>) {
        let Ok(tree) = self.connection.query_tree(window).unwrap().reply() else { return };
        for child in tree.children {
            found.push(child);
            self.below(child, found);
        }
    }

    /// The window whose title is right.
    pub fn find(&self, is_right: impl Fn(&str) -> bool) -> Option<WindowId> {
        let (name, kind) = (self.atom("_NET_WM_NAME"), self.atom("UTF8_STRING"));
        let mut windows = Vec::new();
        self.below(self.root, &mut windows);
        windows.into_iter().find(|&window| {
            let title = self.connection.get_property(false, window, name, kind, 0, 1024).unwrap();
            title.reply().is_ok_and(|title| is_right(&String::from_utf8_lossy(&title.value)))
        })
    }

    /// Asks a window to close, as the cross in its corner does.
    pub fn close(&self, window: WindowId) {
        let (protocols, close) = (self.atom("WM_PROTOCOLS"), self.atom("WM_DELETE_WINDOW"));
        let event = ClientMessageEvent::new(32, window, protocols, [close, 0, 0, 0, 0]);
        self.connection.send_event(false, window, EventMask::NO_EVENT, event).unwrap();
        self.connection.flush().unwrap();
    }
}
