//! Connections apart from their table: copied out of one, entered into another.
//!
//! Runs when an operator asks what would become of a packet (`explain.rs`): what the packet meets in the live table is
//! copied into one that nobody else sees. Reads the live table as a listing does and writes nothing there. A copy is what
//! the connection was at about one moment: packets that other workers have in hand go on changing it.

use xvs_proto::FlowKey;

use super::call_ids::CallIds;
use super::connection::Connection;
use super::flags::Flags;
use super::handle::TableWorker;
use super::id::ConnId;
use super::insertion::{Inserted, NewConnection};
use crate::shm::atomic::Ordering;

/// A connection or template as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// All of it that can be said at an insertion, but for its controller.
    pub connection: NewConnection,
    /// Packets from the client so far.
    pub in_packets: u32,
    /// How many connections it controls.
    pub controlled: u32,
    /// The Call-ID that a template stands for.
    pub call_id: Option<Vec<u8>>,
    /// The template that controls it.
    pub controller: Option<Box<Copied>>,
}

impl Copied {
    /// A connection with its controller, which `connection` finds.
    pub(crate) fn of<'a>(
        view: &Connection<'a>,
        call_ids: &CallIds,
        connection: &dyn Fn(ConnId) -> Connection<'a>,
    ) -> Self {
        let new = NewConnection {
            protocol: view.protocol(),
            client: view.client(),
            virtual_endpoint: view.virtual_endpoint(),
            dest: view.dest(),
            local: view.local(),
            method: view.method(),
            flags: view.flags(),
            state: view.state(),
            expires: view.expires(),
            timeout_seconds: view.timeout_seconds(),
            dest_ref: view.dest_ref(),
            mark: view.mark(),
            controller: None,
        };
        let controller =
            view.controller().map(|id| Box::new(Self::of(&connection(id), call_ids, connection)));
        Self {
            connection: new,
            in_packets: view.in_packets(),
            controlled: view.controlled(),
            call_id: if view.is_template() { call_ids.read(view) } else { None },
            controller,
        }
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.connection.flags.contains(Flags::TEMPLATE)
    }

    /// What replies to its local endpoint look like, if it has one.
    pub(crate) fn local_replies(&self) -> Option<FlowKey> {
        self.connection.local.and_then(|_| self.connection.reply_flow())
    }

    /// Whether it is a template that nobody finds any more.
    pub fn is_detached(&self) -> bool {
        self.connection.flags.contains(Flags::DETACHED)
    }

    /// Enters it into a table where its Call-ID has a place in `call_ids`. `None` if there is no room.
    pub(crate) fn enter(&self, table: &mut TableWorker, call_ids: &CallIds) -> Option<ConnId> {
        let controller = match &self.controller {
            Some(controller) => Some(controller.enter(table, call_ids)?),
            None => None,
        };
        let flags = Flags(self.connection.flags.0 & !Flags::DETACHED.0);
        let mut new = NewConnection { controller, flags, ..self.connection };
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
                // Others that it controls are not here, and keep it from being removed all the same.
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
    /// A copy of a connection here.
    pub(crate) fn copied(&self, id: ConnId, call_ids: &CallIds) -> Copied {
        Copied::of(&self.connection(id), call_ids, &|id| self.connection(id))
    }
}
