//! Copies of connections: read from one table, entered into another.
//!
//! Used when an operator explains a packet (`explain/`): the connections that the packet finds in the live table are
//! copied into a table that only the dry run uses. Copying reads the live table as a listing does and writes nothing to
//! it. A copy shows the connection at approximately one moment; other workers may change the connection at the same
//! time.

use xvs_proto::FlowKey;

use super::call_ids::CallIds;
use super::connection::Connection;
use super::flags::Flags;
use super::ftp::{Asked, Shift};
use super::handle::TableWorker;
use super::id::ConnId;
use super::insertion::{Inserted, NewConnection};
use crate::shm::atomic::Ordering;

/// A copy of a connection or template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// All arguments of an insertion, except for the controller.
    pub connection: NewConnection,
    /// The number of packets from the client so far.
    pub in_packets: u32,
    /// The number of connections that it controls.
    pub controlled: u32,
    /// The Call-ID of a template.
    pub call_id: Option<Vec<u8>>,
    /// The shift of the replies on an FTP control connection, and the client's request.
    pub(crate) ftp: Option<(Shift, Asked)>,
    /// The numbers of a connection through the SYN proxy.
    pub(crate) numbers: Option<[u32; 4]>,
    /// The template or connection that controls it.
    pub controller: Option<Box<Copied>>,
}

impl Copied {
    /// A copy of a connection and of its controller, which `connection` looks up.
    pub(crate) fn of<'a>(
        view: &Connection<'a>,
        call_ids: &CallIds,
        connection: &dyn Fn(ConnId) -> Connection<'a>,
    ) -> Self {
        Self {
            connection: NewConnection {
                protocol: view.protocol(),
                client: view.client(),
                virtual_endpoint: view.virtual_endpoint(),
                dest: view.dest(),
                local: view.local(),
                method: view.method(),
                flags: view.flags(),
                state: view.state(),
                expires: view.expires(),
                spare: view.spare(),
                dest_ref: view.dest_ref(),
                mark: view.mark(),
                controller: None,
            },
            in_packets: view.in_packets(),
            controlled: view.controlled(),
            ftp: view.flags().contains(Flags::FTP).then(|| (view.shift(), view.asked())),
            numbers: view
                .flags()
                .intersects(Flags::HANDSHAKE | Flags::SYN_PROXY)
                .then(|| view.number_words()),
            call_id: if view.is_template() { call_ids.read(view) } else { None },
            controller: view.controller().map(|id| Box::new(Self::of(&connection(id), call_ids, connection))),
        }
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.connection.flags.contains(Flags::TEMPLATE)
    }

    /// The flow of replies to the local endpoint, if there is one.
    pub(crate) fn local_replies(&self) -> Option<FlowKey> {
        self.connection.local.and_then(|_| self.connection.reply_flow())
    }

    /// Whether it is a template that look-ups no longer find.
    pub fn is_detached(&self) -> bool {
        self.connection.flags.contains(Flags::DETACHED)
    }

    /// Enters the copy into a table, and its Call-ID into `call_ids`. `None` if there is no room.
    pub(crate) fn enter(&self, table: &mut TableWorker, call_ids: &CallIds) -> Option<ConnId> {
        let controller = match &self.controller {
            Some(controller) => Some(controller.enter(table, call_ids)?),
            None => None,
        };
        let mut new = NewConnection {
            controller,
            flags: Flags(self.connection.flags.0 & !Flags::DETACHED.0),
            ..self.connection
        };
        if new.flags.contains(Flags::TEMPLATE) {
            new.mark = match &self.call_id {
                Some(call_id) => call_ids.write(0, call_id, table, |_, _| false)?,
                None => 0,
            };
        }
        if let Some(controller) = controller
            && !table.connection(controller).add_controlled()
        {
            return None;
        }
        match table.insert(&new) {
            Inserted::New(id) => {
                let connection = table.connection(id);
                connection.record.entry.in_packets.store(self.in_packets, Ordering::Relaxed);
                call_ids.settle(new.mark, &connection);
                if let Some((shift, asked)) = self.ftp {
                    connection.set_shift(shift);
                    connection.set_asked(asked);
                }
                if let Some(words) = self.numbers {
                    connection.set_number_words(words);
                }
                // The other connections that it controls are not copied; the count must still prevent its removal.
                let shared = self.controlled == 0 || connection.add_controlled();
                if self.is_detached() {
                    table.detach(id);
                }
                shared.then_some(id)
            }
            inserted => {
                controller.inspect(|controller| table.connection(*controller).drop_controlled());
                if let Inserted::Existing(id) = inserted { Some(id) } else { None }
            }
        }
    }
}

impl TableWorker {
    /// A copy of a connection of this table.
    pub(crate) fn copied(&self, id: ConnId, call_ids: &CallIds) -> Copied {
        Copied::of(&self.connection(id), call_ids, &|id| self.connection(id))
    }
}
