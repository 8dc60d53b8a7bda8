//! Names of users. Those of `/etc/passwd` are known at once; for others the system's name service is asked on a thread of its own,
//! since it may ask a network: until it has answered, and where it has no name, there is none.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most users remembered. Full: all are forgotten, and asked for again.
const MAX_USERS: usize = 16_384;
/// Most users waiting to be asked for. Full: asked for another time.
const MAX_WAITING: usize = 256;

/// What is known of each user; `None` for one without a name, or not answered yet.
type Known = Mutex<HashMap<u32, Option<String>>>;

/// Answers who a user is, without waiting.
#[derive(Debug)]
pub struct Users {
    known: Arc<Known>,
    ask: Option<SyncSender<u32>>,
}

impl Users {
    /// This system's.
    pub fn of_the_system() -> Self {
        Self::new(|uid| {
            let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
            user.map(|user| user.name)
        })
    }

    /// `service` is called on a thread of its own.
    fn new(service: impl Fn(u32) -> Option<String> + Send + 'static) -> Self {
        let known = Arc::new(Mutex::new(HashMap::new()));
        let (ask, asked): (_, Receiver<u32>) = sync_channel(MAX_WAITING);
        let answers = Arc::clone(&known);
        let asking = std::thread::Builder::new()
            .name("weft-users".into())
            .spawn(move || {
                for uid in asked {
                    let name = service(uid);
                    lock(&answers).insert(uid, name);
                }
            });
        Self {
            known,
            // Without a thread no user has a name.
            ask: asking.is_ok().then_some(ask),
        }
    }

    /// The name, if it is known by now.
    pub fn name(&self, uid: u32) -> Option<String> {
        let mut known = lock(&self.known);
        if let Some(name) = known.get(&uid) {
            return name.clone();
        }
        if known.len() >= MAX_USERS {
            known.clear();
        }
        let name = local(uid);
        if name.is_none()
            && self
                .ask
                .as_ref()
                .is_none_or(|ask| ask.try_send(uid).is_err())
        {
            return None;
        }
        known.insert(uid, name.clone());
        name
    }
}

fn lock(known: &Known) -> MutexGuard<'_, HashMap<u32, Option<String>>> {
    // A panic while it was held leaves at worst a name out.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name in `/etc/passwd`.
fn local(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    in_passwd(&text, uid)
}

fn in_passwd(text: &str, uid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY_S: u32 = 3_999_999_999;

    #[test]
    fn passwd_is_read() {
        let text = "root:x:0:0::/root:/bin/sh\n# odd\n:x:1:1\nweb:x:33:33::/:/bin/false\n";
        assert_eq!(in_passwd(text, 33).as_deref(), Some("web"));
        assert_eq!(in_passwd(text, 0).as_deref(), Some("root"));
        assert_eq!(in_passwd(text, 1), None);
    }

    #[test]
    fn a_name_service_that_hangs_keeps_nobody_waiting() {
        let (release, held) = sync_channel::<()>(0);
        let users = Users::new(move |uid| {
            let _ = held.recv();
            Some(format!("user-{uid}"))
        });
        assert_eq!(users.name(NOBODY_S), None);
        assert_eq!(users.name(0).as_deref(), Some("root"));
        release.send(()).unwrap();
        while users.name(NOBODY_S).is_none() {
            std::thread::yield_now();
        }
        assert_eq!(users.name(NOBODY_S), Some(format!("user-{NOBODY_S}")));
    }
}
