//! Reads the run folder on a thread of its own, and wakes the window when there is news.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use nibble_run::{Explain, RunError, RunFolder, RunFollower, RunNews, RunState};

use crate::history::Facts;

/// Time between two looks at a run that trains.
const WHILE_ACTIVE: Duration = Duration::from_millis(200);
/// Time between two looks at a run that has ended: it may be resumed.
const WHILE_ENDED: Duration = Duration::from_secs(1);
/// The most events in one message, so that a long run appears while it is still being read.
const CHUNK: usize = 20_000;

/// What the reader has found.
#[derive(Debug)]
pub enum Message {
    /// The run was opened, or its plan appeared.
    Facts(Box<Facts>),
    /// Events, and what the run is doing.
    News(RunNews),
    /// Something is wrong with the folder; tried again until it is mended.
    Trouble(Trouble),
    /// The trouble is over.
    Mended,
}

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl From<RunError> for Trouble {
    fn from(error: RunError) -> Self {
        let (message, hint) = error.explanation();
        // Excerpts of files bring blanks and line breaks that a sentence has no room for.
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { message, hint }
    }
}

/// Starts to read the run at `path`. `wake` is called after every message. Ends when nobody
/// listens any more.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(path: &Path, wake: impl Fn() + Send + 'static) -> io::Result<Receiver<Message>> {
    let (messages, receiver) = mpsc::channel();
    let path = path.to_owned();
    let mut reader = Reader {
        path,
        messages,
        wake,
        follower: None,
        has_plan: false,
        state: None,
        trouble: None,
    };
    thread::Builder::new().name("nibble-reader".into()).spawn(move || {
        while let Ok(pause) = reader.look() {
            thread::sleep(pause);
        }
    })?;
    Ok(receiver)
}

/// Nobody listens any more.
struct Gone;

struct Reader<W> {
    path: PathBuf,
    messages: Sender<Message>,
    wake: W,
    follower: Option<RunFollower>,
    has_plan: bool,
    state: Option<RunState>,
    trouble: Option<Trouble>,
}

impl<W: Fn()> Reader<W> {
    /// Looks once, and tells what is new; returns how long to wait until the next look.
    fn look(&mut self) -> Result<Duration, Gone> {
        let (facts, news) = match self.poll() {
            Ok(found) => found,
            Err(trouble) => {
                // Whatever comes back is read from its beginning.
                self.follower = None;
                if self.trouble.as_ref() != Some(&trouble) {
                    eprintln!("nibble-monitor: {}; {}", trouble.message, trouble.hint);
                    self.trouble = Some(trouble.clone());
                    self.tell(Message::Trouble(trouble))?;
                }
                return Ok(WHILE_ENDED);
            }
        };
        if self.trouble.take().is_some() {
            self.tell(Message::Mended)?;
        }
        if let Some(facts) = facts {
            self.has_plan = facts.plan.is_ok();
            self.tell(Message::Facts(Box::new(facts)))?;
        }
        let pause = match news.state {
            _ if news.more => Duration::ZERO,
            state if state.is_active() => WHILE_ACTIVE,
            _ => WHILE_ENDED,
        };
        if news.reset || !news.events.is_empty() || self.state != Some(news.state) {
            self.state = Some(news.state);
            self.tell(Message::News(news))?;
        }
        Ok(pause)
    }

    fn poll(&mut self) -> Result<(Option<Facts>, RunNews), Trouble> {
        let mut facts = None;
        let follower = match &mut self.follower {
            Some(follower) => {
                if !follower.folder().settings_file().is_file() {
                    return Err(Trouble {
                        message: format!("{} is gone", self.path.display()),
                        hint: "what was read of it is still shown".into(),
                    });
                }
                if !self.has_plan && follower.folder().plan().is_ok() {
                    facts = Some(read_facts(follower.folder())?);
                }
                follower
            }
            None => {
                let follower = RunFollower::open(&self.path)?;
                facts = Some(read_facts(follower.folder())?);
                self.follower.insert(follower)
            }
        };
        Ok((facts, follower.poll(CHUNK)?))
    }

    fn tell(&self, message: Message) -> Result<(), Gone> {
        self.messages.send(message).map_err(|_| Gone)?;
        (self.wake)();
        Ok(())
    }
}

fn read_facts(folder: &RunFolder) -> Result<Facts, RunError> {
    let path = folder.path();
    let settings = folder.settings()?;
    // `.` and `..` have no name of their own.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned();
    let plan = folder.plan().map_err(|error| error.to_string());
    Ok(Facts { name, settings, plan })
}
