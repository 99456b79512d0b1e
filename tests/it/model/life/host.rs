//! What a host does with its message, step by step.

use super::{Faults, Host, Life, MAX_ATTEMPTS, Note, Phase, Rules, Wish};

impl Life {
    pub(super) fn host(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let Host { phase, message, .. } = self.hosts[host];
        let faults = self.faults;
        let to = |phase: Phase, life: Self| life.at(host, phase);
        if phase != Phase::Idle && faults.kills > 0 {
            let killed = Self { faults: Faults { kills: faults.kills - 1, ..faults }, ..self };
            // What the first host knew of wishes dies with it.
            let wish = if host == 0 { Wish::None } else { self.wish };
            steps.push(("kill -9", Self { wish, ..killed }.requeue(host)));
        }
        let is_last = self.messages[message].attempt >= MAX_ATTEMPTS;
        let is_cancelled = host == 0 && message == 0 && self.wish != Wish::None;
        match phase {
            Phase::Idle => self.take(host, rules, steps),
            Phase::Start if self.bucket_is_away => {
                let gives_up = is_last && !rules.unknown_waits;
                steps.push((
                    "run_steps: not known",
                    if gives_up { to(Phase::TellFailed, self) } else { self.wait(host, rules) },
                ));
            }
            Phase::Start => {
                let next = match self.record {
                    true => Phase::TellComplete,
                    false if self.held => Phase::Store,
                    false => Phase::Generate,
                };
                steps.push(("run_steps", to(next, self)));
            }
            Phase::Generate => self.generate(host, (is_last, is_cancelled), rules, steps),
            Phase::Store => {
                let kept = Self { held: self.held || rules.result_is_held, ..self };
                let not_taken = if is_last && !rules.outage_is_no_attempt {
                    to(rules.after_a_failure(), kept)
                } else {
                    kept.wait(host, rules)
                };
                let stored = to(Phase::PutRecord, kept);
                steps.push(if self.bucket_is_away { ("store: not taken", not_taken) } else { ("store", stored) });
            }
            Phase::PutRecord | Phase::PutLate => self.put_record(host, rules, steps),
            Phase::StoredOutcome if self.bucket_is_away => steps.push(("stored_outcome: not known", self.wait(host, rules))),
            Phase::StoredOutcome => {
                let failed = if rules.notes_before_it_looks { Phase::TellFailed } else { rules.noting() };
                steps.push(("stored_outcome", to(if self.record { Phase::TellComplete } else { failed }, self)));
            }
            Phase::TellComplete => {
                self.report(host, ("report_complete", rules), Self { reported_complete: true, ..self }, steps);
            }
            Phase::NoteFailed | Phase::TellFailed => self.report_failed(host, rules, steps),
            Phase::Ack => self.ack(host, rules, steps),
        }
    }

    fn ack(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let Host { message, has_lost_it, .. } = self.hosts[host];
        if has_lost_it {
            return steps.push(("ack: not heard", self.at(host, Phase::Idle)));
        }
        let is_promise = message == self.second.unwrap_or(0);
        let acked = Self { promised: self.promised && !is_promise, ..self };
        // Of what failed it stays for those who began before: they have not looked for it yet.
        let note = match self.messages[message].note {
            Note::Open if rules.settled_note_stays => Note::Settled,
            Note::Settled => Note::Settled,
            Note::None | Note::Open => Note::None,
        };
        let acked = acked.with(message, |message| (message.note, message.ended) = (note, false));
        steps.push(("ack", acked.at(host, Phase::Idle)));
    }

    fn generate(self, host: usize, (is_last, is_cancelled): (bool, bool), rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let faults = self.faults;
        let generated = Self { generations: (self.generations + 1).min(3), ..self };
        steps.push(("generate", generated.at(host, Phase::Store)));
        if faults.failures > 0 {
            let failed = Self { faults: Faults { failures: faults.failures - 1, ..faults }, ..self };
            steps.push((
                "generate: failed",
                if is_last { failed.at(host, rules.after_a_failure()) } else { failed.requeue(host) },
            ));
        }
        if is_cancelled {
            steps.push(("generate: cancelled", self.at(host, rules.after_a_failure())));
        }
    }

    fn report_failed(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let Host { phase, message, .. } = self.hosts[host];
        match phase {
            Phase::NoteFailed if self.bucket_is_away => steps.push(("note_failed: not taken", self.wait(host, rules))),
            Phase::NoteFailed => {
                let next = if rules.notes_before_it_looks { Phase::StoredOutcome } else { Phase::TellFailed };
                steps.push(("note_failed", self.with(message, |message| message.note = Note::Open).at(host, next)));
            }
            Phase::TellFailed => {
                let is_news = self.second.is_none_or(|second| second == message);
                let notified = Self {
                    reported_failed: self.reported_failed || is_news,
                    failed_beside_record: self.failed_beside_record || self.record && is_news,
                    promise_was_empty: self.promise_was_empty || self.wish == Wish::Repeated,
                    ..self
                };
                self.report(host, ("report_failed", rules), notified, steps);
            }
            _ => {}
        }
    }

    /// A message comes to an idle host.
    fn take(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        for message in (0..self.messages.len()).filter(|message| self.messages[*message].queued) {
            if self.messages[message].ended {
                let taken = self.with(message, |message| message.queued = false);
                steps.push(("notify_again", taken.began(host, message).at(host, Phase::StoredOutcome)));
                continue;
            }
            let attempt = (self.messages[message].attempt + 1).min(MAX_ATTEMPTS + 1);
            let taken = self.with(message, |message| {
                message.queued = false;
                message.attempt = attempt;
            });
            let is_cancelled = host == 0 && message == 0 && self.wish != Wish::None;
            let is_noted = if rules.note_is_of_one_message {
                self.messages[message].note == Note::Open
            } else {
                // As if the job's failure were noted rather than the message's, and for good.
                self.messages.iter().any(|message| message.note != Note::None) || self.second.is_some()
            };
            let next = match (is_cancelled, rules.cancel_looks) {
                (true, true) => rules.after_a_failure(),
                (true, false) => Phase::TellFailed,
                // Only who had the message before has noted anything.
                (false, _) if is_noted && self.bucket_is_away => {
                    steps.push(("resume: not known", taken.holding(host, message).wait(host, rules)));
                    continue;
                }
                (false, _) if is_noted && self.record => Phase::TellComplete,
                (false, _) if is_noted => Phase::TellFailed,
                (false, _) => Phase::Start,
            };
            let is_own = self.messages[message].note == Note::Open;
            let reported_without_a_run = next == Phase::TellFailed && self.second == Some(message) && !is_own && !is_cancelled;
            // The end was told, and its message settled: what begins now is another try, as if the caller had sent it again.
            let is_over = self.reported_failed && !self.reported_complete && self.messages[1 - message].note == Note::Settled;
            let is_again = self.is_twin && self.second.is_none() && is_over && !is_own;
            let second = if is_again { Some(message) } else { self.second };
            let reported_failed = self.reported_failed && !is_again;
            let second_was_not_run = self.second_was_not_run || reported_without_a_run;
            let taken = Self { second, reported_failed, second_was_not_run, ..taken };
            steps.push(("start", taken.began(host, message).at(host, next)));
        }
    }

    fn began(self, host: usize, message: usize) -> Self {
        let mut began = self.holding(host, message);
        began.hosts[host].settled_before = self.messages.each_ref().map(|message| message.note == Note::Settled);
        began
    }

    fn put_record(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let looks = rules.looks_for_notes && self.hosts[host].phase == Phase::PutRecord && !self.bucket_is_away;
        let settled_before = self.hosts[host].settled_before;
        let notes = || self.messages.iter().zip(settled_before).filter(|(message, _)| message.note != Note::None);
        if looks && notes().any(|(_, settled_before)| !settled_before || !rules.earlier_notes_are_passed_over) {
            let is_earlier = notes().all(|(_, settled_before)| settled_before);
            let failed = Self { second_was_not_run: self.second_was_not_run || is_earlier, ..self };
            return steps.push(("failed beside it", failed.at(host, rules.after_a_failure())));
        }
        if looks && !rules.look_and_record_are_one {
            return steps.push(("failed_beside: none", self.at(host, Phase::PutLate)));
        }
        let is_last = self.messages[self.hosts[host].message].attempt >= MAX_ATTEMPTS;
        let gives_up = is_last && !rules.lost_answer_waits;
        let unanswered = |life: Self| if gives_up { life.at(host, Phase::TellFailed) } else { life.wait(host, rules) };
        if self.bucket_is_away {
            return steps.push(("put_record: not taken", unanswered(self)));
        }
        steps.push(("put_record", Self { record: true, held: false, ..self }.at(host, Phase::TellComplete)));
        if self.faults.lost_answers > 0 {
            let faults = Faults { lost_answers: self.faults.lost_answers - 1, ..self.faults };
            steps.push(("put_record: answer lost", unanswered(Self { record: true, faults, ..self })));
        }
    }

    /// `told`: the life in which the receiver has taken it. It may take it and its answer be lost, or not take it: then the message waits,
    /// here or with its source, until it is given up.
    fn report(self, host: usize, (name, rules): (&'static str, Rules), notified: Self, steps: &mut Vec<(&'static str, Self)>) {
        let Host { message, has_lost_it, .. } = self.hosts[host];
        let deferred = |life: Self| {
            let carried = if has_lost_it { life } else { life.with(message, |message| message.ended = true) };
            carried.requeue(host)
        };
        steps.push((name, notified.at(host, Phase::Ack)));
        if self.faults.untaken > 0 {
            let faults = Faults { untaken: self.faults.untaken - 1, ..self.faults };
            steps.push(("not taken: round", Self { faults, ..self }));
            steps.push(("not taken: defer", deferred(Self { faults, ..self })));
            steps.push(("taken, answer lost: defer", deferred(Self { faults, ..notified })));
        }
        if self.faults.given_up > 0 && !has_lost_it {
            let faults = Faults { given_up: self.faults.given_up - 1, ..self.faults };
            let kept = self.with(message, |message| (message.ended, message.dead) = (true, rules.given_up_is_kept));
            let reported_failed = kept.reported_failed || !rules.given_up_is_no_end;
            let failed_beside_record = kept.failed_beside_record || kept.record && !rules.given_up_is_no_end;
            let given_up = Self { reported_failed, failed_beside_record, faults, ..kept };
            steps.push(("keep_undelivered", given_up.at(host, Phase::Idle)));
        }
    }

    /// The message goes back for the store's sake.
    fn wait(self, host: usize, rules: Rules) -> Self {
        let Host { message, has_lost_it, .. } = self.hosts[host];
        let waiting = self.requeue(host);
        if !rules.outage_is_no_attempt || self.messages[message].ended || has_lost_it {
            return waiting;
        }
        waiting.with(message, |message| message.attempt -= 1)
    }

    fn requeue(self, host: usize) -> Self {
        let Host { message, has_lost_it, .. } = self.hosts[host];
        let waiting = if has_lost_it { self } else { self.with(message, |message| message.queued = true) };
        waiting.at(host, Phase::Idle)
    }
}

impl Rules {
    /// What comes after an attempt that ends the job.
    fn after_a_failure(self) -> Phase {
        if self.notes_before_it_looks { self.noting() } else { Phase::StoredOutcome }
    }

    fn noting(self) -> Phase {
        match (self.failure_is_noted, self.notes_before_it_looks) {
            (true, _) => Phase::NoteFailed,
            (false, true) => Phase::StoredOutcome,
            (false, false) => Phase::TellFailed,
        }
    }
}
