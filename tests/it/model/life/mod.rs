//! The states of one job, the steps between them, and the promises that hold in each.

mod host;

/// Attempts after which the caller is notified `failed`.
const MAX_ATTEMPTS: u8 = 2;

/// What the code does where earlier releases did something else.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all combinations are walked through")]
pub(super) struct Rules {
    pub(super) waits_for_send: bool,
    pub(super) infer_is_no_queue: bool,
    pub(super) repeat_takes_cancel_back: bool,
    pub(super) cancel_looks: bool,
    pub(super) lost_answer_waits: bool,
    pub(super) unknown_waits: bool,
    pub(super) outage_is_no_attempt: bool,
    pub(super) result_is_held: bool,
    pub(super) failure_is_noted: bool,
    pub(super) note_is_of_one_message: bool,
    pub(super) given_up_is_no_end: bool,
    pub(super) given_up_is_kept: bool,
    pub(super) notes_before_it_looks: bool,
    pub(super) looks_for_notes: bool,
    pub(super) look_and_record_are_one: bool,
    pub(super) settled_note_stays: bool,
    pub(super) earlier_notes_are_passed_over: bool,
}

impl Rules {
    pub(super) const OURS: Self = Self {
        waits_for_send: true,
        infer_is_no_queue: true,
        repeat_takes_cancel_back: true,
        cancel_looks: true,
        lost_answer_waits: true,
        unknown_waits: true,
        outage_is_no_attempt: true,
        result_is_held: true,
        failure_is_noted: true,
        note_is_of_one_message: true,
        given_up_is_no_end: true,
        given_up_is_kept: true,
        notes_before_it_looks: true,
        looks_for_notes: true,
        look_and_record_are_one: true,
        settled_note_stays: true,
        earlier_notes_are_passed_over: true,
    };
}

/// What a host is at with its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// It has the message and asks the bucket for the record.
    Start,
    Generate,
    /// The images go into the bucket, and onto the disk meanwhile.
    Store,
    /// It looks for notes of failures beside it, and writes the record within the time that whoever notes one waits.
    PutRecord,
    /// As if that time were not kept: it has looked, and writes the record at some time.
    PutLate,
    /// The attempt failed: what the caller is about to be told is noted in the bucket.
    NoteFailed,
    /// Then the record is looked for.
    StoredOutcome,
    TellComplete,
    TellFailed,
    Ack,
}

/// The caller's request on its way into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Send {
    Never,
    UnderWay,
    Ended,
}

/// Whose wish to cancel is known to the first host, which the caller speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wish {
    None,
    Cancelled,
    /// The caller was promised the job again after the wish.
    Repeated,
}

/// What the bucket says of the failure of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Note {
    None,
    Open,
    /// Its message was settled.
    Settled,
}

/// A host with what it has in work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Host {
    phase: Phase,
    message: usize,
    /// Notes that were settled when it began: they are of earlier tries.
    settled_before: [bool; 2],
    /// The queue has given its message to somebody else: whatever it says of it is not heard.
    has_lost_it: bool,
}

const IDLE: Host = Host { phase: Phase::Idle, message: 0, settled_before: [false; 2], has_lost_it: false };

/// A message of the job: the first one, or that of a submission after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Message {
    queued: bool,
    attempt: u8,
    /// Its failure is noted in the bucket, under its own identity.
    note: Note,
    /// It carries that its job has ended: its notification is deferred, and no handler is needed.
    ended: bool,
    /// It lies among the dead letters because its notification was not taken.
    dead: bool,
}

/// How much may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    kills: u8,
    lost_answers: u8,
    outages: u8,
    untaken: u8,
    failures: u8,
    /// The notification is not taken for longer than it is sent again.
    given_up: u8,
    /// The job is published twice, or the queue gives a message that is in work to another host as well.
    twins: u8,
}

impl Faults {
    const NONE: Self = Self { kills: 0, lost_answers: 0, outages: 0, untaken: 0, failures: 0, given_up: 0, twins: 0 };
    /// The queue has each message in the hands of one host at a time.
    pub(super) const ONE_HOST_EACH: Self =
        Self { kills: 2, lost_answers: 1, outages: 2, untaken: 2, failures: 2, given_up: 1, ..Self::NONE };
    /// And not so: fewer of the others, for the number of states.
    pub(super) const TWINS: Self = Self { kills: 1, untaken: 1, failures: 1, twins: 2, ..Self::NONE };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all combinations are walked through")]
pub(super) struct Life {
    send: Send,
    messages: [Message; 2],
    hosts: [Host; 2],
    /// The first host runs the job for a caller of `/infer`.
    infer: bool,
    /// The images are on a host's disk.
    held: bool,
    generations: u8,
    record: bool,
    bucket_is_away: bool,
    wish: Wish,
    /// A caller was answered 202 and has not heard of an end since.
    promised: bool,
    /// The job was told as failed, and this message is another try.
    second: Option<usize>,
    /// The second message is the first one once more.
    is_twin: bool,
    reported_complete: bool,
    /// Of the last submission: that of an earlier one is the same webhook-id once more.
    reported_failed: bool,
    /// `failed` was reported although the record was there.
    failed_beside_record: bool,
    /// 202 was answered, and then only the cancel that came before it was reported.
    promise_was_empty: bool,
    /// The second submission's message was told the end of the first one without a run.
    second_was_not_run: bool,
    /// All that may go wrong in this walk.
    all_faults: Faults,
    faults: Faults,
}

impl Life {
    pub(super) fn start(faults: Faults) -> Self {
        Self {
            send: Send::Never,
            messages: [Message { queued: false, attempt: 0, note: Note::None, ended: false, dead: false }; 2],
            hosts: [IDLE; 2],
            infer: false,
            held: false,
            generations: 0,
            record: false,
            bucket_is_away: false,
            wish: Wish::None,
            promised: false,
            second: None,
            is_twin: false,
            reported_complete: false,
            reported_failed: false,
            failed_beside_record: false,
            promise_was_empty: false,
            second_was_not_run: false,
            all_faults: faults,
            faults,
        }
    }

    /// The promise that this state breaks.
    pub(super) fn broken(&self) -> Option<&'static str> {
        let is_queued = self.messages.iter().any(|message| message.queued || message.dead);
        let is_held = is_queued || self.hosts.iter().any(|host| host.phase != Phase::Idle);
        if self.promise_was_empty || self.promised && !is_held {
            return Some("202 is held");
        }
        if self.failed_beside_record {
            return Some("record => never failed");
        }
        if self.second_was_not_run {
            return Some("a failed id is free");
        }
        // Nothing but the store was at fault.
        let is_only_outage = self.faults.kills == self.all_faults.kills
            && self.faults.failures == self.all_faults.failures
            && self.faults.twins == self.all_faults.twins;
        if is_only_outage && self.wish == Wish::None && self.reported_failed {
            return Some("an outage ends no job");
        }
        if is_only_outage && self.generations > 1 {
            return Some("an outage generates nothing twice");
        }
        (self.reported_complete && self.reported_failed).then_some("never two ends")
    }

    /// Everything that may happen next, by its name.
    pub(super) fn steps(self, rules: Rules) -> Vec<(&'static str, Self)> {
        let mut steps = Vec::new();
        self.caller(rules, &mut steps);
        self.world(&mut steps);
        for host in 0..self.hosts.len() {
            self.host(host, rules, &mut steps);
        }
        steps
    }

    fn caller(self, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let is_over = self.reported_complete || self.reported_failed;
        match self.send {
            Send::Never if !self.infer => {
                steps.push(("infer: claim", Self { infer: true, ..self }));
                steps.push(("submit: accept", Self { send: Send::UnderWay, ..self }));
            }
            Send::UnderWay => {
                let sent = Self { send: Send::Ended, promised: true, ..self };
                steps.push(("submit: sent", sent.with(0, |message| message.queued = true)));
                steps.push(("submit: not sent", Self { send: Send::Never, ..self }));
                if !rules.waits_for_send {
                    steps.push(("submit again: 202", Self { promised: true, ..self }));
                }
            }
            _ => {}
        }
        if self.infer {
            steps.push(("infer: caller is gone", Self { infer: false, ..self }));
            if !rules.infer_is_no_queue {
                steps.push(("submit beside infer: 202", Self { promised: true, ..self }));
            }
        }
        // The first host knows of a wish while the job waits, or runs there.
        if self.send == Send::Ended && self.wish == Wish::None && !is_over && !self.record && self.second.is_none() {
            steps.push(("cancel", Self { wish: Wish::Cancelled, ..self }));
        }
        // A caller who is being told of the end may not.
        if self.wish == Wish::Cancelled
            && self.messages[0].queued
            && self.messages[0].note != Note::Open
            && !self.messages[0].ended
            && !is_over
        {
            let wish = if rules.repeat_takes_cancel_back { Wish::None } else { Wish::Repeated };
            steps.push(("submit again after cancel: 202", Self { wish, promised: true, ..self }));
        }
        // Whoever was told of a failure may send the job again, with the same body.
        let is_free = self.second.is_none() && !self.is_twin;
        if self.reported_failed && !self.reported_complete && is_free && self.wish == Wish::None {
            let again = Self { second: Some(1), reported_failed: false, promised: true, ..self };
            steps.push(("submit again after failed", again.with(1, |message| message.queued = true)));
        }
    }

    fn world(self, steps: &mut Vec<(&'static str, Self)>) {
        let faults = self.faults;
        if faults.outages > 0 && !self.bucket_is_away {
            steps.push((
                "bucket: away",
                Self { bucket_is_away: true, faults: Faults { outages: faults.outages - 1, ..faults }, ..self },
            ));
        }
        let twin = Self { faults: Faults { twins: faults.twins.saturating_sub(1), ..faults }, ..self };
        let is_one = self.second.is_none()
            && !self.is_twin
            && self.send == Send::Ended
            && !self.reported_failed
            && !self.reported_complete;
        if faults.twins > 0 && is_one {
            steps.push(("published twice", Self { is_twin: true, ..twin }.with(1, |message| message.queued = true)));
        }
        for host in (0..self.hosts.len()).filter(|_| faults.twins > 0) {
            let Host { phase, message, has_lost_it, .. } = self.hosts[host];
            if phase != Phase::Idle && !has_lost_it {
                let mut lost = twin.with(message, |message| message.queued = true);
                lost.hosts[host].has_lost_it = true;
                steps.push(("delivered once more", lost));
            }
        }
        for dead in (0..self.messages.len()).filter(|message| self.messages[*message].dead) {
            let again = self.with(dead, |message| (message.dead, message.queued) = (false, true));
            steps.push(("redrive", again));
        }
        if self.bucket_is_away {
            steps.push(("bucket: back", Self { bucket_is_away: false, ..self }));
        }
    }

    fn with(mut self, message: usize, change: impl FnOnce(&mut Message)) -> Self {
        change(&mut self.messages[message]);
        self
    }

    fn holding(mut self, host: usize, message: usize) -> Self {
        self.hosts[host].message = message;
        self
    }

    fn at(mut self, host: usize, phase: Phase) -> Self {
        self.hosts[host].phase = phase;
        if phase == Phase::Idle {
            // What it had makes no difference any more.
            self.hosts[host] = IDLE;
        }
        self
    }
}
