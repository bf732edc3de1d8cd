// The page as the server first sends it: the form, drawn when the page is built. Never in a browser.

import { render } from 'preact-render-to-string';
import { App } from './app';
import { startLanguage, t } from './i18n';

/** What stands in the page's root, and what is said where the script does not come. */
export async function first(): Promise<{ root: string; lost: string }> {
  await startLanguage();
  return { root: render(<App />), lost: t('state.lost') };
}
