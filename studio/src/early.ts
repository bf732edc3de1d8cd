// Before the page's script is there: the form of the first answer can be written in, chosen in and
// pressed; `takeOver.ts` does then what was pressed. No module: it runs while the page is parsed.

interface Window {
  early?: Early;
}

/** What was done to the form so far. */
interface Early {
  /** Buttons, in the order in which they were pressed. */
  pressed: HTMLElement[];
  changed: Set<Element>;
  isSent: boolean;
  stop: () => void;
}

{
  const root = document.documentElement;
  const recall = (name: string, here?: boolean): unknown => {
    try {
      return JSON.parse((here ? sessionStorage : localStorage).getItem('studio.' + name) ?? 'null');
    } catch {
      return null;
    }
  };
  const theme = recall('theme');
  if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
  const tags = [recall('language'), ...navigator.languages].map((tag) => String(tag).slice(0, 2));
  const language = tags.find((tag) => /^(en|es)$/i.test(tag)) ?? 'en';
  const isOfForm = /^(#\/?(create)?)?$/.test(location.hash.split('?')[0] ?? '');
  // Whoever has to sign in sees that, not a form.
  const isKnown = !('keys' in root.dataset) || recall('name') !== null;
  // A script that never comes: the form says so.
  addEventListener(
    'error',
    (e) => {
      const lost = document.getElementById('lost');
      if (e.target instanceof HTMLScriptElement && lost) lost.hidden = false;
    },
    true,
  );
  if (isOfForm && isKnown && language.toLowerCase() === root.lang) {
    const form = document.querySelector('.composer');
    const send = () => {
      early.isSent = true;
      form?.querySelector('[type=submit]')?.setAttribute('aria-busy', 'true');
    };
    const note = (e: Event) => {
      const target = e.target as HTMLElement;
      const button = target.closest?.('button');
      // A link within the page: its place in the address would be another view.
      if (target.closest?.('.skip')) e.preventDefault();
      if (e.type === 'submit' || (e instanceof KeyboardEvent && isSending(e))) {
        e.preventDefault();
        send();
      } else if (e.type === 'input' || e.type === 'change') early.changed.add(target);
      else if (e.type === 'click' && button && button.type !== 'submit') early.pressed.push(button);
    };
    const isSending = (e: KeyboardEvent) =>
      e.key === 'Enter' && (e.ctrlKey || e.metaKey) && form?.contains(e.target as Node);
    const types = ['submit', 'input', 'change', 'click', 'keydown'];
    for (const type of types) document.addEventListener(type, note, true);
    const early: Early = {
      pressed: [],
      changed: new Set(),
      isSent: false,
      stop: () => {
        for (const type of types) document.removeEventListener(type, note, true);
      },
    };
    const draft = (recall('draft', true) ?? recall('draft') ?? {}) as Record<string, unknown>;
    for (const name of ['prompt', 'negative']) {
      const field = form?.querySelector<HTMLTextAreaElement>(`[name=${name}]`);
      if (!field) continue;
      // Written before this ran, or put back by the browser.
      if (field.value) early.changed.add(field);
      else if (typeof draft[name] === 'string') field.value = draft[name];
    }
    window.early = early;
    root.classList.add('early');
  }
}
