// What is sent: jobs as JSON, and forms that bring their images along.
import type * as schema from "./schema.js";

/** A file with an image: PNG, JPEG or WebP. */
export type ImageFile = Blob | Uint8Array;

export type EditForm = Omit<schema.EditForm, "image"> & { image: ImageFile[] };
type WithFiles<Form> = Omit<Form, "masked_user_image" | "garment_image"> & {
  masked_user_image: ImageFile;
  garment_image: ImageFile;
};
export type TryOnForm = WithFiles<schema.TryOnForm>;
export type InferForm = WithFiles<schema.InferForm>;

export type EditBody = schema.Edit | EditForm;
export type TryOnBody = schema.TryOn | TryOnForm | schema.TryOnFormJson;
export type InferBody = schema.Generate | schema.TryOn | schema.Edit | InferForm | schema.InferFormJson;

const IMAGE_TYPES: [string, number[]][] = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/webp", [0x52, 0x49, 0x46, 0x46]],
];

/** The body of a request: a form where there are files in it, else JSON. */
export function bodyOf(job: object): string | FormData {
  return Object.values(job).flat().some(isFile) ? formOf(job) : JSON.stringify(job);
}

/** `/infer` takes jobs of every task, and has to be told which one it is. */
export function withTask(job: InferBody): object {
  if ("task" in job && job.task) return job;
  if ("person" in job) return { ...job, task: "tryon" };
  return "images" in job ? { ...job, task: "edit" } : job;
}

function formOf(job: object): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(job)) {
    if (value === undefined || value === null) continue;
    const values: unknown[] = Array.isArray(value) ? value : [value];
    for (const [index, one] of values.entries()) {
      if (isFile(one)) form.append(name, blobOf(one), `${name}-${index}`);
      else form.append(name, typeof one === "object" ? JSON.stringify(one) : String(one));
    }
  }
  return form;
}

function isFile(value: unknown): value is ImageFile {
  return value instanceof Blob || value instanceof Uint8Array;
}

function blobOf(file: ImageFile): Blob {
  if (file instanceof Blob) return file;
  const type = IMAGE_TYPES.find(([, start]) => start.every((byte, index) => file[index] === byte))?.[0];
  return new Blob([new Uint8Array(file)], { type: type ?? "application/octet-stream" });
}
