//! The shim's loop and its sandbox's network: who is told what, and what clients ask of it.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::{Client, Shim};
use crate::control::{Attention, NetworkStatus, Notice, Reply, Request, Unkept};
use crate::network::Source;
use crate::packet;
use crate::steward::Order;

impl Shim<'_> {
    pub(super) fn hear_network(&mut self, source: Source) {
        let Some(network) = &mut self.machine.network else { return };
        let told = network.hear(source, self.machine.vmm.line());
        self.tell_of_network(told);
        self.hand_grants();
    }

    pub(super) fn network_due(&mut self, now: Instant) {
        let Some(network) = &mut self.machine.network else { return };
        let told = network.due(now, self.machine.vmm.line());
        self.tell_of_network(told);
    }

    /// Hands tokens that are to be kept to sessions that keep them.
    pub(super) fn hand_grants(&mut self) {
        let Some(network) = &mut self.machine.network else { return };
        let keeps = |client: &Client| client.holds && client.attention.keeps;
        let keepers = self.clients.iter().filter(|(_, client)| keeps(client));
        let keepers: Vec<u64> = keepers.map(|(number, _)| *number).collect();
        while let Some(handed) = network.hand_grant(&keepers) {
            let notice = Notice::Grant(Unkept { number: handed.number, grant: handed.text });
            let told = self
                .clients
                .get(&handed.client)
                .is_some_and(|client| packet::send_now(&client.socket, &Reply::Notice(notice), &[]).is_ok());
            if !told {
                network.grant_answered(handed.client, handed.number, false);
            }
        }
    }

    /// The next tokens to be kept, for a client that is no session.
    pub(super) fn next_grant(&mut self, client: u64) -> Reply {
        let network = self.machine.network.as_mut();
        let handed = network.and_then(|network| network.hand_grant(&[client]));
        let grant = handed.map(|handed| Unkept { number: handed.number, grant: handed.text });
        Reply::Grant { grant }
    }

    pub(super) fn client_left(&mut self, client: u64) {
        if let Some(network) = &mut self.machine.network {
            network.client_left(client);
        }
        self.hand_grants();
    }

    /// What a client says without waiting for an answer.
    pub(super) fn heed(&mut self, client: u64, request: Request) {
        match request {
            Request::Answer { question, allow } => self.answer_question(question, allow),
            Request::GrantKept { number, kept } => {
                if let Some(network) = &mut self.machine.network {
                    network.grant_answered(client, number, kept);
                }
                self.hand_grants();
            }
            Request::Authority { authority } => {
                let Some(network) = &mut self.machine.network else { return };
                if let Err(why) = network.set_authority(authority)
                    && let Some(client) = self.clients.get(&client)
                {
                    let notice = Reply::Notice(Notice::AuthorityStays { why });
                    let _ = packet::send_now(&client.socket, &notice, &[]);
                }
            }
            Request::SshAgent { records } => {
                let is_session = self.clients.get(&client).is_some_and(|client| client.holds);
                if let Some(network) = self.machine.network.as_mut().filter(|_| is_session) {
                    let told = network.note_ssh_agent(records);
                    self.tell_of_network(told);
                }
            }
            _ => {}
        }
    }

    /// Tells those sessions that want to know.
    fn tell_of_network(&self, told: Vec<Notice>) {
        for notice in told {
            let wants = |attention: Attention| match notice {
                Notice::Asked { .. } | Notice::AskOver { .. } => attention.asks,
                // What an observing session does is let through on purpose.
                Notice::Blocked { .. } | Notice::MoreBlocked { .. } | Notice::Unresolved { .. } => {
                    attention.hints && !attention.observes
                }
                Notice::AuthorityEnds | Notice::SecretsEnd => attention.keeps,
                _ => attention.hints,
            };
            // What one session does need not be done by others.
            let most = match notice {
                Notice::AuthorityEnds | Notice::SecretsEnd => 1,
                _ => usize::MAX,
            };
            let meant = self.clients.values().filter(|client| client.holds && wants(client.attention));
            for client in meant.take(most) {
                let _ = packet::send_now(&client.socket, &Reply::Notice(notice.clone()), &[]);
            }
        }
    }

    /// A user's answer to a question.
    fn answer_question(&mut self, question: u64, allow: bool) {
        let mut told = Vec::new();
        if let Some(network) = &mut self.machine.network {
            network.answer(question, allow, &mut told);
        }
        self.tell_of_network(told);
    }

    /// The sessions are others than before.
    pub(super) fn attend(&mut self) {
        if let Some(network) = &mut self.machine.network {
            let sessions = self.clients.values().filter(|client| client.holds);
            network.attend(sessions.map(|client| client.attention));
        }
    }

    pub(super) fn answer_on_network(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Reply {
        let Some(network) = &mut self.machine.network else {
            return match request {
                Request::Network => Reply::Network(NetworkStatus::default()),
                _ => refused("it has no network: it was made with --network none"),
            };
        };
        let ports = match request {
            Request::Network | Request::ForgetOnce { .. } => {
                let mut told = Vec::new();
                if let Request::ForgetOnce { keys } = request {
                    network.forget_once(&keys);
                }
                let status = network.status(&mut told);
                self.tell_of_network(told);
                return Reply::Network(status);
            }
            Request::Secrets { secrets } => {
                let variables = secrets.variables.clone();
                if let Err(why) = network.set_secrets(secrets) {
                    return refused(&why);
                }
                let _ = self.orders.send(Order::Variables(variables));
                return Reply::SecretsTaken;
            }
            Request::Publish { publish } => match descriptors.into_iter().next() {
                Some(socket) => network.publish(publish, socket),
                None => return refused("a port came without its socket"),
            },
            Request::Unpublish { publish } => network.unpublish(&publish),
            _ => return refused("this is not about the network"),
        };
        match ports {
            Ok(ports) => Reply::Ports { ports },
            Err(error) => refused(&error.to_string()),
        }
    }
}

fn refused(why: &str) -> Reply {
    Reply::Refused { why: why.into(), stopping: false }
}
