// From the form of the first answer to the page: what was written stays as it is, with the caret in
// it, and what was pressed meanwhile is done.

import { change } from './drafting/draft';
import { model, refreshModel } from './state/store';

/** Whether the form is drawn before it is known who is signed in: it stands there already. */
export const mayShowForm = (): boolean => window.early !== undefined || model.value !== null;

const isText = (element: Element): element is HTMLTextAreaElement =>
  element instanceof HTMLTextAreaElement && ['prompt', 'negative'].includes(element.name);

/** What `element`, a control, stands at. */
const stateOf = (element: Element): string | boolean =>
  element instanceof HTMLInputElement && element.type === 'checkbox'
    ? element.checked
    : (element as HTMLInputElement).value;

function put(element: Element, wanted: string | boolean): void {
  const control = element as HTMLInputElement;
  if (stateOf(control) === wanted) return;
  if (typeof wanted === 'boolean') return control.click();
  control.value = wanted;
  for (const type of ['input', 'change']) control.dispatchEvent(new Event(type, { bubbles: true }));
}

const MODEL_WAIT_MS = 3000;

/** Read the model's limits, which the form of the first answer is without; not for ever. */
export const askModel = (): Promise<unknown> =>
  window.early
    ? Promise.race([refreshModel(), new Promise((wake) => setTimeout(wake, MODEL_WAIT_MS))])
    : Promise.resolve();

/** Draw the page over what stands in `root`. */
export async function takeOver(root: HTMLElement, draw: () => void): Promise<void> {
  const { early } = window;
  const { classList } = document.documentElement;
  if (!early) root.replaceChildren();
  const focused = document.activeElement as HTMLTextAreaElement | null;
  const caret = focused && isText(focused) ? [focused.selectionStart, focused.selectionEnd] : null;
  const changed = [...(early?.changed ?? [])].map((one) => [one, stateOf(one)] as const);
  for (const [element, text] of changed)
    if (isText(element)) change({ [element.name]: text });
  // First as it was drawn beforehand, so that each field stays the one it is; then with the limits.
  const limits = model.peek();
  if (early) model.value = null;
  early?.stop();
  draw();
  model.value = limits;
  classList.add('early');
  document.getElementById('lost')?.remove();
  if (early) await new Promise((drawn) => setTimeout(drawn));
  classList.add('live');
  if (!early) return;
  for (const [element, wanted] of changed) if (!isText(element) && element.isConnected) put(element, wanted);
  for (const button of early.pressed) if (button.isConnected) button.click();
  const form = root.querySelector<HTMLFormElement>('.composer');
  if (caret && focused && !focused.isConnected) {
    const field = form?.querySelector<HTMLTextAreaElement>(`[name=${focused.name}]`);
    field?.focus();
    field?.setSelectionRange(caret[0] ?? 0, caret[1] ?? 0);
  }
  if (early.isSent) form?.requestSubmit();
}
