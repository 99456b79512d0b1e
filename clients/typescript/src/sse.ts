// Server-sent events of a job.
import type { Job } from "./schema.js";

const NAMES = ["sending", "accepted", "started", "step", "waiting", "complete", "failed", "cancelled"] as const;
const ENDS: readonly string[] = ["complete", "failed", "cancelled"];

export type EventName = (typeof NAMES)[number];

/** One thing that happened to a job. */
export interface JobEvent {
  /** What a later `events(id, { lastEventId })` goes on from. */
  id: string;
  name: EventName;
  /** As `job()` answers at this moment. */
  job: Job;
}

/** Whether nothing comes after it. */
export function isEnd(event: JobEvent): boolean {
  return ENDS.includes(event.name);
}

/** Takes a stream's text as it comes, and gives the events that are complete. */
export class EventParser {
  #buffer = "";
  #fields = new Map<string, string>();

  *feed(text: string): Generator<JobEvent> {
    const lines = (this.#buffer + text).split("\n");
    this.#buffer = lines.pop() ?? "";
    for (const line of lines) {
      const content = line.replace(/\r$/, "");
      if (content !== "") {
        this.#take(content);
        continue;
      }
      const event = this.#event();
      this.#fields.clear();
      if (event) yield event;
    }
  }

  /** A line that begins with a colon is a comment: it says that the host is there. */
  #take(line: string): void {
    const [, name = "", value = ""] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
    const before = name === "data" ? this.#fields.get(name) : undefined;
    this.#fields.set(name, before === undefined ? value : `${before}\n${value}`);
  }

  #event(): JobEvent | undefined {
    const name = NAMES.find((known) => known === this.#fields.get("event"));
    const data = this.#fields.get("data");
    if (name === undefined || data === undefined) return undefined;
    return { id: this.#fields.get("id") ?? "", name, job: JSON.parse(data) as Job };
  }
}
