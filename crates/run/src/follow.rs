//! A run's events as they are written: each line once, in order, however the file changes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{Event, Progress, RunError, RunFolder, RunState};

/// What is new since the last look.
#[derive(Clone, Debug, PartialEq)]
pub struct RunNews {
    /// Whether the events begin again: what was handed out before no longer holds, because the run
    /// was resumed from an earlier checkpoint. Also true of the first news.
    pub reset: bool,
    /// New events.
    pub events: Vec<Event>,
    /// Whether more are waiting to be read.
    pub more: bool,
    /// What the run is doing.
    pub state: RunState,
}

/// Follows one run, whichever process trains it.
#[derive(Debug)]
pub struct RunFollower {
    folder: RunFolder,
    lines: LineFollower,
    progress: Progress,
}

impl RunFollower {
    /// Begins with the first event.
    ///
    /// # Errors
    /// When the folder is no run.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        let folder = RunFolder::open(path)?;
        Ok(Self { folder, lines: LineFollower::default(), progress: Progress::default() })
    }

    /// The run.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// What the events that were handed out add up to.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// At most `limit` events that have not been handed out. Costs little when there are none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn poll(&mut self, limit: usize) -> Result<RunNews, RunError> {
        // Asked first: a run that ends in between is then still called active, and looked at again.
        let is_active = self.folder.is_active();
        let path = self.folder.metrics();
        let mut events = Vec::new();
        let read = self.lines.read(&path, limit, |line| {
            // Lines of a newer Nibble are no events of this one.
            events.extend(serde_json::from_slice::<Event>(line));
        });
        let (reset, more) = read.map_err(|source| RunError::Read { path, source })?;
        if reset {
            self.progress = Progress::default();
        }
        events.iter().for_each(|event| self.progress.add(event));
        Ok(RunNews { reset, events, more, state: self.progress.state(is_active) })
    }
}

/// Reads whole lines of a file that grows, or is replaced.
#[derive(Debug, Default)]
struct LineFollower {
    /// Everything before this has been handed out.
    offset: u64,
    /// The last line that was, to notice that the file is another one.
    last: Vec<u8>,
    buffer: Vec<u8>,
    started: bool,
}

impl LineFollower {
    /// Hands at most `limit` new lines to `on_line`. Returns whether they begin again with the
    /// first, and whether there are more.
    fn read(
        &mut self,
        path: &Path,
        limit: usize,
        mut on_line: impl FnMut(&[u8]),
    ) -> io::Result<(bool, bool)> {
        let mut file = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let reset = !self.started || !self.is_same(file.as_mut())?;
        self.started = true;
        if reset {
            self.offset = 0;
            self.last.clear();
        }
        let Some(mut file) = file else { return Ok((reset, false)) };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut n_lines = 0;
        self.buffer.clear();
        loop {
            // As much as whole lines of a usual length need, so that a long file is not held twice.
            const BLOCK: u64 = 1 << 18;
            let n_read = (&mut file).take(BLOCK).read_to_end(&mut self.buffer)?;
            let mut start = 0;
            while let Some(length) = self.buffer[start..].iter().position(|&byte| byte == b'\n') {
                if n_lines == limit {
                    return Ok((reset, true));
                }
                let line = &self.buffer[start..start + length];
                on_line(line);
                self.last.clear();
                self.last.extend_from_slice(line);
                start += length + 1;
                self.offset += length as u64 + 1;
                n_lines += 1;
            }
            self.buffer.drain(..start);
            // The rest is a line that is still being written.
            if n_read == 0 {
                return Ok((reset, false));
            }
        }
    }

    /// Whether the last line that was handed out is still where it was.
    fn is_same(&mut self, file: Option<&mut File>) -> io::Result<bool> {
        if self.offset == 0 {
            return Ok(true);
        }
        let Some(file) = file else { return Ok(false) };
        if file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.offset - 1 - self.last.len() as u64))?;
        self.buffer.resize(self.last.len(), 0);
        file.read_exact(&mut self.buffer)?;
        Ok(self.buffer == self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::{
        MetricsWriter,
        testing::{append, checkpoint, ready, run, step},
    };

    #[test]
    fn every_event_is_handed_out_once_in_chunks() {
        let place = tempfile::tempdir().unwrap();
        let folder = run(&place.path().join("run"));
        let mut follower = RunFollower::open(folder.path()).unwrap();
        let first = follower.poll(10).unwrap();
        assert_eq!((first.reset, first.events.len(), first.more), (true, 0, false));
        let events: Vec<_> = std::iter::once(ready(25)).chain((1..=24).map(step)).collect();
        append(&folder, &events);
        let mut seen = Vec::new();
        for n in [10, 10, 5, 0] {
            let news = follower.poll(10).unwrap();
            assert_eq!((news.reset, news.events.len(), news.more), (false, n, n == 10));
            seen.extend(news.events);
        }
        assert_eq!(seen, events);
        assert_eq!(follower.progress().step, 24);
    }

    #[test]
    fn a_line_waits_until_it_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let folder = run(&place.path().join("run"));
        let line = format!("{}\n", serde_json::to_string(&step(1)).unwrap());
        let mut file = fs::File::create(folder.metrics()).unwrap();
        let mut follower = RunFollower::open(folder.path()).unwrap();
        file.write_all(&line.as_bytes()[..20]).unwrap();
        assert_eq!(follower.poll(10).unwrap().events, []);
        file.write_all(&line.as_bytes()[20..]).unwrap();
        assert_eq!(follower.poll(10).unwrap().events, [step(1)]);
        file.write_all(b"{\"event\":\"of a newer Nibble\"}\n").unwrap();
        file.write_all(line.as_bytes()).unwrap();
        assert_eq!(follower.poll(10).unwrap().events, [step(1)]);
    }

    #[test]
    fn a_resumed_run_begins_again_for_those_who_look() {
        let place = tempfile::tempdir().unwrap();
        let folder = run(&place.path().join("run"));
        append(&folder, &[ready(9), step(1), checkpoint(1), step(2), step(3)]);
        let mut follower = RunFollower::open(folder.path()).unwrap();
        assert_eq!(follower.poll(100).unwrap().events.len(), 5);
        let mut writer = MetricsWriter::open(&folder, 1).unwrap();
        for event in [ready(9), step(2), step(3), step(4), step(5)] {
            writer.write(&event).unwrap();
        }
        let news = follower.poll(100).unwrap();
        assert!(news.reset);
        assert_eq!(news.events.len(), 8);
        assert_eq!(follower.progress().step, 5);
    }

    #[test]
    fn long_lines_are_whole() {
        let place = tempfile::tempdir().unwrap();
        let folder = run(&place.path().join("run"));
        let long = |letter: &str| Event::Warning { message: letter.repeat(400_000) };
        let events = [long("a"), long("b"), step(1)];
        append(&folder, &events);
        let mut follower = RunFollower::open(folder.path()).unwrap();
        assert_eq!(follower.poll(2).unwrap().events, events[..2]);
        assert_eq!(follower.poll(2).unwrap().events, events[2..]);
    }
}
