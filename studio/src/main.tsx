import './styles/index.css';
import { render } from 'preact';
import { App } from './app';
import { startLive } from './live';
import { startTheme } from './theme';

startTheme();
startLive();
const root = document.getElementById('app');
if (root) render(<App />, root);
